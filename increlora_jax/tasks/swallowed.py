"""Rows of a CSV file that two stray quotes have made part of one text."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from increlora_jax.errors import InputError
from increlora_jax.tasks.label_forms import is_integer, is_number
from increlora_jax.tasks.records import quote

_FEW = 10
"""Different integers up to which a file is taken to have all of them outside of suspect texts."""


def refuse_swallowed_rows(
    path: Path,
    rows: Sequence[tuple[int, list[str]]],
    *,
    label_place: int,
    delimiter: str,
    labels: set[str],
) -> None:
    """See that no line within a quoted field looks like a row by itself.

    A line does if it has as many fields as the row, and a known label in the label's place.

    Args:
      path: The file.
      rows: The rows with a line break in a field, each with the line that it starts on.
      label_place: The place of the label among the fields.
      delimiter: The character between fields.
      labels: The labels of all rows of the file.

    Raises:
      InputError: Naming file and line.
    """
    is_label = _choose_test(labels)
    for start, fields in rows:
        found = [
            (start + offset, inner[label_place])
            for offset, inner in _split_lines(fields, label_place, delimiter)
            if len(inner) == len(fields) and is_label(inner[label_place])
        ]
        if found:
            line, label = found[0]
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise InputError(
                f"{path}:{start}: a quote opens here and closes lines later, and line {line}{more} "
                f"within it looks like a row of its own, with label {quote(label)}: two stray "
                'quotes lose rows. Write each " within a text as "" and quote that text, or save '
                "the file as .tsv; if all of it is one text, save the file as .jsonl"
            )


def _choose_test(labels: set[str]) -> Callable[[str], bool]:
    """Tell classes by their equality to a known one; scores, and many integers, by being such."""
    if all(map(is_integer, labels)):
        return is_integer if len(labels) > _FEW else labels.__contains__
    return is_number if all(map(is_number, labels)) else labels.__contains__


def _split_lines(
    fields: list[str], label_place: int, delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """Yield (offset from the first line, fields) of each line but that of the row's own label."""
    offset = 0
    for place, field in enumerate(fields):
        parts = [part.removesuffix("\r") for part in field.split("\n")]
        last = len(parts) - 1
        for number, part in enumerate(parts):
            before = fields[:place] if number == 0 else []
            after = fields[place + 1 :] if number == last else []
            has_label = label_place < place if number == 0 else label_place > place
            if last and not (has_label and number in (0, last)):
                yield offset + number, [*before, *part.split(delimiter), *after]
        offset += last

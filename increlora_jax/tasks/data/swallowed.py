"""Detection of CSV rows that two stray quotes have merged into one text."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.label_forms import fold, is_integer, is_number, strip_blanks
from increlora_jax.tasks.data.records import quote

_FEW = 10
"""Largest number of different integers that are assumed to be all known from safe rows."""


def refuse_swallowed_rows(
    path: Path,
    rows: Sequence[tuple[int, list[str]]],
    *,
    label_place: int,
    delimiter: str,
    labels: Collection[str],
    known: Collection[str] | None,
) -> None:
    """Check that no line within a quoted field looks like a row itself.

    A line does if it has as many fields as the row, and a known label in the label's place. If all
    lines have as many fields, a label in another form (blanks, quotes, case) counts as known.

    Args:
        path: The file.
        rows: The rows with a line break in a field, each with the line that it starts on.
        label_place: The index of the label among the fields.
        delimiter: The character between fields.
        labels: The labels of all rows of the file.
        known: The labels known from elsewhere; None for scores.

    Raises:
        InputError: If a line does. The message gives file and line.
    """
    is_label = _choose_test({*labels, *(known or ())}, known is None)
    folded = {fold(_unquote(label)) for label in (*labels, *(known or ()))}
    for start, fields in rows:
        lines = list(_split_lines(fields, label_place, delimiter))
        # There is no other quote between two stray ones: each line splits as its row does.
        is_even = all(len(inner) == len(fields) for _, inner, _ in lines)
        found = [
            (start + offset, inner[label_place])
            for offset, inner, is_own in lines
            if not is_own and len(inner) == len(fields)
            if is_label(inner[label_place])
            or (is_even and _is_alike(inner[label_place], is_label, folded))
        ]
        if found:
            raise _describe(path, start, found)


def _describe(path: Path, start: int, found: Sequence[tuple[int, str]]) -> InputError:
    line, label = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return InputError(
        f"{path}:{start}: a quote opens here and closes lines later, and line {line}{more} "
        f"within it looks like a row of its own, with label {quote(label)}: two stray "
        'quotes lose rows. Write each " within a text as "" and quote that text, or save '
        "the file as .tsv; if all of it is one text, save the file as .jsonl"
    )


def _is_alike(label: str, is_label: Callable[[str], bool], folded: set[str]) -> bool:
    """Return whether a label is a known one in another form."""
    bare = _unquote(label)
    return is_label(bare) or fold(bare) in folded


def _unquote(label: str) -> str:
    return strip_blanks(strip_blanks(label).strip('"'))


def _choose_test(labels: set[str], is_score: bool) -> Callable[[str], bool]:
    """Return a test for labels: a known class; for scores and many integers, any number."""
    if is_score:
        return is_number
    if all(map(is_integer, labels)):
        return is_integer if len(labels) > _FEW else labels.__contains__
    return is_number if all(map(is_number, labels)) else labels.__contains__


def _split_lines(
    fields: list[str], label_place: int, delimiter: str
) -> Iterator[tuple[int, list[str], bool]]:
    """Yield (offset from the first line, fields, whether the line holds the row's own label)."""
    offset = 0
    for place, field in enumerate(fields):
        parts = [part.removesuffix("\r") for part in field.split("\n")]
        last = len(parts) - 1
        for number, part in enumerate(parts):
            before = fields[:place] if number == 0 else []
            after = fields[place + 1 :] if number == last else []
            has_label = label_place < place if number == 0 else label_place > place
            if last:
                inner = [*before, *part.split(delimiter), *after]
                yield offset + number, inner, has_label and number in (0, last)
        offset += last

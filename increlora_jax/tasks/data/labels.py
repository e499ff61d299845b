"""Conversion of label texts to the numbers that the model is trained on."""

from collections.abc import Mapping, Sequence

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.label_forms import (
    fold,
    has_decimal_comma,
    has_other_signs,
    is_number,
)
from increlora_jax.tasks.data.records import quote, quote_all
from increlora_jax.tasks.data.tables import Table

_LARGEST_SCORE = float(np.finfo(np.float32).max)
_MOST_ROWS = 3


def parse_classes(table: Table, ids: Mapping[str, int]) -> np.ndarray:
    """Turn the label column into int32 ids.

    Raises:
        InputError: At the first label that `ids` lacks.
    """
    labels = table.columns[-1]
    for row, label in enumerate(labels):
        if label not in ids:
            raise InputError(
                f"{table.locate(row)}: {_describe_label(label)}, and the known ones are "
                f"{quote_all(list(ids))}. Correct it or remove the row{_find_alike(label, ids)}"
            )
    return np.array([ids[label] for label in labels], np.int32)


def _find_alike(label: str, ids: Mapping[str, int]) -> str:
    alike = [known for known in ids if fold(known) == fold(label)]
    if not label or not alike:
        return ""
    return f" (it differs from {quote(alike[0])} by its form only: write it so)"


def parse_scores(table: Table, score_range: tuple[float, float] | None = None) -> np.ndarray:
    """Turn the label column into float32 scores.

    Raises:
        InputError: At the first label that is not a finite number within the range.
    """
    low, high = score_range or (-_LARGEST_SCORE, _LARGEST_SCORE)
    labels = table.columns[-1]
    odd = [row for row, label in enumerate(labels) if not is_number(label)]
    if odd:
        problem = f"{_describe_label(labels[odd[0]])}: not a finite number"
        raise describe_rows(table, odd, problem)
    beyond = [row for row, label in enumerate(labels) if not low <= float(label) <= high]
    if beyond:
        problem = f"{_describe_label(labels[beyond[0]])}: not within {low:g} to {high:g}"
        raise describe_rows(table, beyond, problem)
    return np.array([float(label) for label in labels], np.float32)


def refuse_empty_labels(table: Table) -> None:
    """Raise an InputError if any row has an empty label."""
    empty = [row for row, label in enumerate(table.columns[-1]) if not label]
    if empty:
        raise describe_rows(table, empty, "the label is empty", "Give one or remove the row")


def describe_rows(
    table: Table, rows: Sequence[int], problem: str, remedy: str = "Correct it or remove the row"
) -> InputError:
    """Return an error about the first of some rows that also names a few of the others.

    Args:
        table: The table.
        rows: The indices of the wrong rows.
        problem: The fault of the first row.
        remedy: Words for the user's next action.
    """
    labels = table.columns[-1]
    if has_decimal_comma(labels[rows[0]]):
        remedy = "Write its decimal comma as a point, and leave commas of thousands out"
    elif has_other_signs(labels[rows[0]]):
        remedy = "Write its minus and digits in ASCII, as in -1.5"
    others = [f"{quote(labels[row])} at {table.lines[row]}" for row in rows[1:_MOST_ROWS]]
    more = len(rows) - len(others) - 1
    tail = f", and {more} more" if more else ""
    also = f" (also {', '.join(others)}{tail})" if others else ""
    return InputError(f"{table.locate(rows[0])}: {problem}. {remedy}{also}")


def _describe_label(label: str) -> str:
    return f"label {quote(label)}" if label else "the label is empty"

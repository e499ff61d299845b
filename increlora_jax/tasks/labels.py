"""From the text of a label to the number the model is trained on."""

import re
from collections.abc import Mapping

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.tasks.records import quote, quote_all
from increlora_jax.tasks.tables import Table

# ASCII digits only: float() would also take "1_000", "nan" and digits of other scripts.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_LARGEST_SCORE = float(np.finfo(np.float32).max)


def is_number(text: str) -> bool:
    """Whether a label's text is a decimal number."""
    return _NUMBER.fullmatch(text) is not None


def is_integer(text: str) -> bool:
    """Whether a label's text is an integer literal."""
    return _INTEGER.fullmatch(text) is not None


def parse_classes(table: Table, ids: Mapping[str, int]) -> np.ndarray:
    """Turn the label column into int32 ids.

    Raises:
      InputError: At the first label that `ids` does not have.
    """
    labels = table.columns[-1]
    for row, label in enumerate(labels):
        if label not in ids:
            raise InputError(
                f"{table.locate(row)}: {_describe_label(label)}; the known ones are "
                f"{quote_all(list(ids))}: correct it or remove the row"
            )
    return np.array([ids[label] for label in labels], np.int32)


def parse_scores(table: Table, score_range: tuple[float, float] | None = None) -> np.ndarray:
    """Turn the label column into float32 scores.

    Raises:
      InputError: At the first label that is not a finite number within the range.
    """
    low, high = score_range or (-_LARGEST_SCORE, _LARGEST_SCORE)
    labels = table.columns[-1]
    for row, label in enumerate(labels):
        if not is_number(label):
            problem = f"{_describe_label(label)}: not a finite number"
        elif not low <= float(label) <= high:
            problem = f"{_describe_label(label)}: not within {low:g} to {high:g}"
        else:
            continue
        raise InputError(f"{table.locate(row)}: {problem}; correct it or remove the row")
    return np.array([float(label) for label in labels], np.float32)


def refuse_empty_labels(table: Table) -> None:
    """Raise InputError at the first row whose label is empty."""
    for row, label in enumerate(table.columns[-1]):
        if not label:
            raise InputError(f"{table.locate(row)}: the label is empty; give one or remove the row")


def _describe_label(label: str) -> str:
    return f"label {quote(label)}" if label else "the label is empty"

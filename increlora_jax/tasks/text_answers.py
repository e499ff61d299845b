"""Texts without labels, from files or from Python, and a model's answers to them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.runtime.console import say
from increlora_jax.tasks.data.layout import Columns, Layout
from increlora_jax.tasks.data.lines import Lines
from increlora_jax.tasks.data.records import quote, quote_all
from increlora_jax.tasks.data.tables import Table, read_pieces, take_text
from increlora_jax.tasks.kind import Encoded
from increlora_jax.tasks.labelled_files import make_split
from increlora_jax.tasks.labelled_texts import Texts, TextTask
from increlora_jax.tasks.split import list_known_layouts
from increlora_jax.tasks.text import TEXT_COLUMNS


class Classified(NamedTuple):
    """Answer of a classifier.

    Attributes:
        label: The most probable label.
        probabilities: The probability of each label; they sum to 1.
    """

    label: str
    probabilities: dict[str, float]


class Scored(NamedTuple):
    """Answer of a regression."""

    score: float


def read_texts(
    task: TextTask, lines: Lines, kind: str, columns: Columns, size: int
) -> Iterator[Texts]:
    """Read a file in pieces; labels in it are ignored.

    Args:
        task: The task.
        lines: The file.
        kind: Its ending, as `tables.read_pieces` takes it.
        columns: The names of the file's columns; default: the task's own, or usual names.
        size: The largest number of rows of a piece.

    Raises:
        InputError: If a line cannot be read; file and line are named.
    """
    for number, table in enumerate(read_pieces(lines, kind, _list_layouts(task, columns), size)):
        if number == 0:
            _tell(task, table)
        yield make_split(task, table, {}, may_be_empty=True)


def _list_layouts(task: TextTask, columns: Columns) -> list[Layout]:
    known = list_known_layouts(task, columns)
    usual = [] if columns.texts else [n for n in TEXT_COLUMNS if len(n) == len(task.columns)]
    headless = [replace(one, columns=one.texts, is_labelled=False) for one in known if one.headless]
    layouts = [
        *(layout.without_label() for layout in known),
        *headless,
        *(Layout(names, is_labelled=False) for names in usual),
    ]
    # An answer for every row: none is skipped.
    return [replace(layout, skips_broken_rows=False) for layout in layouts]


def _tell(task: TextTask, table: Table) -> None:
    name, texts = table.path.name, table.layout.texts
    if task.columns and texts != task.columns:
        say(f"note: {quote_all(texts)} of {name} stand for {quote_all(task.columns)} of the task")
    if table.unread:
        say(f"note: columns not read in {name}: {quote_all(table.unread)}")


def take_texts(task: TextTask, rows: Sequence[object]) -> Texts:
    """Make a split of texts, or of pairs as tuples.

    Raises:
        InputError: If a row is neither, or the task wants the other.
    """
    pairs = [_take_row(f"text {number}", row) for number, row in enumerate(rows)]
    count = len(task.columns) or len(pairs[0])
    for number, pair in enumerate(pairs):
        if len(pair) != count:
            wanted = "a pair of texts" if count == 2 else "one text"
            named = f" ({', '.join(task.columns)})" if task.columns else ""
            raise InputError(f"text {number}: the model takes {wanted} an example{named}")
    first, *second = map(list, zip(*pairs, strict=True))
    labels = np.full(len(first), np.nan if task.is_regression else -1)
    kind = np.float32 if task.is_regression else np.int32
    seconds = second[0] if second else None
    return Texts(first, seconds, labels.astype(kind), is_labelled=False)


def _take_row(where: str, row: object) -> tuple[str, ...]:
    match row:
        case str():
            return (take_text(where, "text", row),)
        case [str() as first, str() as second]:
            return take_text(where, "text", first), take_text(where, "text2", second)
        case _:
            raise InputError(f"{where}: {quote(repr(row))}. Give a string, or a tuple of two")


def answer_texts(
    task: TextTask, logits: np.ndarray, encoded: Encoded, split: Texts
) -> list[Classified] | list[Scored]:
    """Return the answer to every text.

    Args:
        task: The task.
        logits: [n, num_labels].
        encoded: Not used.
        split: Not used.
    """
    wide = np.asarray(logits, np.float64)
    if task.labels is None:
        return [Scored(float(row[0])) for row in wide]
    odds = np.exp(wide - wide.max(-1, keepdims=True))
    names = task.labels
    return [
        Classified(names[int(row.argmax())], dict(zip(names, map(float, row), strict=True)))
        for row in odds / odds.sum(-1, keepdims=True)
    ]

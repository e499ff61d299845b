"""Examples of a task from files of labelled texts, with reports on the rows."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.tasks.counts import count_word, describe_split
from increlora_jax.tasks.data.folder import find_split, list_unused
from increlora_jax.tasks.data.labels import parse_classes, parse_scores
from increlora_jax.tasks.data.layout import Layout
from increlora_jax.tasks.data.records import quote_all
from increlora_jax.tasks.data.tables import DELIMITERS, Table, kind_of, read_table
from increlora_jax.tasks.labelled_texts import TextData, Texts, TextTask

_QUOTED = re.compile('"(?:[^"]|"")+"')


def load_folder(task: TextTask, data_dir: Path, layouts: Sequence[Layout]) -> TextData:
    """Read the training and development files of a task whose labels are known.

    A file may give a class by its name or by its id.

    Raises:
        InputError: If the files cannot be used. The message gives the folder, or file and line.
    """
    paths = [find_split(data_dir, split) for split in ("train", *task.dev_splits)]
    ids = index_labels(task)
    known = None if task.is_regression else ids
    tables = [read_table(path, layouts, known) for path in paths]
    data = assemble_data(task, tables, ids)
    return data._replace(notes=(*data.notes, *list_unused(data_dir, paths)))


def assemble_data(task: TextTask, tables: Sequence[Table], ids: Mapping[str, int]) -> TextData:
    """Assemble a task's data from the tables of the training and development splits.

    Args:
        task: The task.
        tables: The training table, then one for each of `task.dev_splits`.
        ids: The id of each possible label text; not used for a regression.
    """
    train, *dev = [make_split(task, table, ids) for table in tables]
    splits = zip(tables, (train, *dev), strict=True)
    notes = [note for table, split in splits for note in report_rows(task, table, split)]
    notes += report_unread(tables)
    return TextData(task, train, dict(zip(task.dev_splits, dev, strict=True)), tuple(notes))


def report_rows(task: TextTask, table: Table, split: Texts) -> list[str]:
    """Report the rows of a file: their number, their labels, and odd rows."""
    name = table.path.name
    return [
        describe_split(task, split),
        *_report_separator(table),
        *_report_broken_rows(table),
        *_report_lines(table.multiline, f"line breaks within quotes in {name}"),
        *_report_lines(table.padded, f"blanks around the label in {name}, which were taken away"),
        *_report_quotes(table),
        *report_empty_texts(split, name),
    ]


def report_empty_texts(split: Texts, name: str) -> list[str]:
    """Report the number of rows with an empty text, which are allowed, if there are any."""
    count = split.num_empty
    return [f"{count_word(count, 'row')} with empty text in {name}"] if count else []


def _report_separator(table: Table) -> list[str]:
    usual = {".csv": ",", ".tsv": "\t"}.get(kind_of(table.path.name), "")
    if table.delimiter == usual:
        return []
    return [f"{table.path.name} is read with a {DELIMITERS[table.delimiter]} between its columns"]


def _report_lines(lines: Sequence[int], problem: str) -> list[str]:
    if not lines:
        return []
    return [f"{count_word(len(lines), 'row')} with {problem}; the first on line {lines[0]}"]


def _report_quotes(table: Table) -> list[str]:
    """Report the rows of a .tsv file with fields in CSV quotes, which are part of the text here."""
    if kind_of(table.path.name) != ".tsv":
        return []
    *texts, last = table.columns
    quoted = [
        line
        for line, label, *fields in zip(table.lines, last, *texts, strict=True)
        if (table.layout.is_labelled and _QUOTED.fullmatch(label))
        or any('""' in field and _QUOTED.fullmatch(field) for field in (label, *fields))
    ]
    return _report_lines(
        quoted,
        f"quotes around a field in {table.path.name}, read as text; if they were written "
        "as those of CSV, end the file's name in .csv",
    )


def report_unread(tables: Sequence[Table]) -> list[str]:
    """Report the unread columns, files with the same ones together."""
    names: dict[tuple[str, ...], list[str]] = {}
    for table in tables:
        names.setdefault(table.unread, []).append(table.path.name)
    return [
        f"columns not read in {' and '.join(files)}: {quote_all(columns)}"
        for columns, files in names.items()
        if columns
    ]


def _report_broken_rows(table: Table) -> list[str]:
    lines = table.broken_lines
    if not lines:
        return []
    where = f"{table.path.name}, the first on line {lines[0]}"
    return [f"{count_word(len(lines), 'row')} with too few or too many fields skipped in {where}"]


def make_split(
    task: TextTask, table: Table, ids: Mapping[str, int], *, may_be_empty: bool = False
) -> Texts:
    """Turn a table into a split; without labels its ids are -1 and its scores NaN.

    Args:
        task: The task.
        table: The rows.
        ids: The id of each possible label text; not used without labels.
        may_be_empty: Whether all rows may have an empty text.

    Raises:
        InputError: If a label is not one of the task's, or every row has an empty text.
    """
    texts = len(table.layout.texts)
    first, *second = table.columns[:texts]
    is_labelled = table.layout.is_labelled
    if not is_labelled:
        labels = np.full(len(first), np.nan if task.is_regression else -1)
        labels = labels.astype(np.float32 if task.is_regression else np.int32)
    elif task.is_regression:
        labels = parse_scores(table, task.score_range)
    else:
        labels = parse_classes(table, ids)
    seconds = second[0] if second else None
    split = Texts(first, seconds, labels, table.path.name, table.num_lines, is_labelled)
    if split.num_empty == len(split) > 1 and not may_be_empty:
        columns = quote_all(table.layout.texts)
        raise InputError(
            f"{table.path}: every row has an empty text ({columns}). Fill the texts, or name their "
            "column by --text-column"
        )
    return split


def index_labels(task: TextTask) -> dict[str, int]:
    """Number the possible texts of a label: each class's name, and its id."""
    names = task.labels or ()
    return {str(index): index for index in range(len(names))} | {
        name: index for index, name in enumerate(names)
    }

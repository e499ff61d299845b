"""From a data folder to a task's examples: which file is which split, and what was read of it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.tasks.base import Split, Task, TaskData
from increlora_jax.tasks.labels import parse_classes, parse_scores
from increlora_jax.tasks.tables import SUFFIXES, Layout, Table, read_table


def load_folder(task: Task, data_dir: Path, layouts: Sequence[Layout]) -> TaskData:
    """Read the training and development files of a task whose labels are known beforehand.

    A file may give a class by its name or by its id.

    Raises:
      InputError: Naming the folder, or file and line.
    """
    paths = [find_split(data_dir, split) for split in ("train", *task.dev_splits)]
    tables = [read_table(path, layouts) for path in paths]
    return assemble_data(task, tables, index_labels(task))


def find_split(data_dir: Path, split: str) -> Path:
    """Find the one file of a split: `dev.tsv`, `dev.csv`, `dev.jsonl`, or `validation` for `dev`.

    Raises:
      InputError: If there is no such file, or more than one.
    """
    try:
        present = set(os.listdir(data_dir))
    except OSError as error:
        raise InputError(
            f"{data_dir}: cannot be read as a folder ({error.strerror}); "
            "give --data-dir one that holds train.tsv and dev.tsv"
        ) from error
    stems = dict.fromkeys((split, name_hub_split(split)))
    wanted = [stem + suffix for stem in stems for suffix in SUFFIXES]
    found = [name for name in wanted if name in present]
    if not found:
        raise InputError(f"{data_dir}: no {split} file is here; add one of {', '.join(wanted)}")
    if len(found) > 1:
        raise InputError(f"{data_dir}: {' and '.join(found)} are both here; keep one")
    return data_dir / found[0]


def name_hub_split(split: str) -> str:
    """Give Hugging Face's name of a split: `validation_matched` for `dev_matched`."""
    return split.replace("dev", "validation", 1)


def assemble_data(task: Task, tables: Sequence[Table], ids: Mapping[str, int]) -> TaskData:
    """Turn the tables of the training and of each development split into a task's data.

    Args:
      task: The task.
      tables: The training table, then one for each of `task.dev_splits`.
      ids: The id of each text a label may have; not read for a regression.
    """
    train, *dev = [make_split(task, table, ids) for table in tables]
    notes = [
        note
        for table, split in zip(tables, (train, *dev), strict=True)
        for note in report_oddities(table, split)
    ]
    return TaskData(task, train, dict(zip(task.dev_splits, dev, strict=True)), tuple(notes))


def report_oddities(table: Table, split: Split) -> list[str]:
    """Report the rows of a file that were skipped, or have an empty text."""
    return [*_report_broken_rows(table), *report_empty_texts(split, table.path.name)]


def report_empty_texts(split: Split, name: str) -> list[str]:
    """Report the rows with an empty text, which are allowed, if there are any."""
    count = split.num_empty
    return [f"{_count_rows(count)} with empty text in {name}"] if count else []


def _report_broken_rows(table: Table) -> list[str]:
    lines = table.broken_lines
    if not lines:
        return []
    where = f"{table.path.name}, the first on line {lines[0]}"
    return [f"{_count_rows(len(lines))} with too few or too many fields skipped in {where}"]


def _count_rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def make_split(task: Task, table: Table, ids: Mapping[str, int]) -> Split:
    """Turn a table into a split; without labels its ids are -1, its scores NaN."""
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
    return Split(first, seconds, labels, table.path.name, is_labelled=is_labelled)


def index_labels(task: Task) -> dict[str, int]:
    """Number the texts that a label may have: each class's name, and its id."""
    names = task.labels or ()
    return {str(index): index for index in range(len(names))} | {
        name: index for index, name in enumerate(names)
    }

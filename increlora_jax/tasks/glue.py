"""The nine GLUE tasks, and the layouts of their files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.tasks.counts import describe_split
from increlora_jax.tasks.data.folder import name_own_split
from increlora_jax.tasks.data.hub import download, take_split
from increlora_jax.tasks.data.layout import Columns, Layout
from increlora_jax.tasks.labelled_files import load_folder, report_empty_texts
from increlora_jax.tasks.labelled_texts import TextData, Texts, TextTask

REPOSITORY = "nyu-mll/glue"
"""Repository of the tasks on the hub."""

_HIDDEN = -1
"""Label of a row whose true label the hub hides, in every GLUE task."""

_PAIR = ("sentence1", "sentence2")

# Columns, labels and their order are those of nyu-mll/glue on the hub.
GLUE_TASKS = {
    task.name: task
    for task in (
        TextTask("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
        TextTask("sst2", ("sentence",), ("negative", "positive"), ("accuracy",)),
        TextTask("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        TextTask("stsb", _PAIR, None, ("pearson", "spearmanr"), score_range=(0.0, 5.0)),
        TextTask(
            "qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")
        ),
        TextTask(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            dev_splits=("dev_matched", "dev_mismatched"),
        ),
        TextTask("qnli", ("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",)),
        TextTask("rte", _PAIR, ("entailment", "not_entailment"), ("accuracy",)),
        TextTask("wnli", _PAIR, ("not_entailment", "entailment"), ("accuracy",)),
    )
}

# Layouts of GLUE's original files that differ from the hub's columns. Some questions of QQP are
# broken over two lines and cannot be restored, so both halves are skipped and counted.
_ORIGINAL_LAYOUTS = {
    "cola": Layout(("sentence", "label"), headless=("source", "label", "star", "sentence")),
    "mrpc": Layout(("#1 String", "#2 String", "Quality")),
    "stsb": Layout((*_PAIR, "score")),
    "qqp": Layout(("question1", "question2", "is_duplicate"), skips_broken_rows=True),
    "mnli": Layout((*_PAIR, "gold_label")),
}


def load_glue(name: str, data_dir: Path | None, columns: Columns | None = None) -> TextData:
    """Load a GLUE task from a folder, or from the hub if no folder is given.

    Raises:
        InputError: If the data cannot be used. The message gives file and line, or explains offline
            use.
    """
    task = GLUE_TASKS[name]
    if data_dir is None:
        return load_hub(task, REPOSITORY)
    return load_folder(task, data_dir, list_layouts(task, columns or Columns()))


def list_layouts(task: TextTask, columns: Columns) -> list[Layout]:
    """List the possible layouts of a task's files: the hub's, GLUE's own, sentence1, sentence2.

    If the user names columns, they are the only layout.

    Raises:
        InputError: If the user names another number of texts than the task has.
    """
    if columns != Columns():
        columns.check_number(f"--task {task.name}", len(task.columns))
        return columns.make_layouts([task.columns])
    layouts = columns.make_layouts([task.columns])
    if task.name in _ORIGINAL_LAYOUTS:
        layouts.append(_ORIGINAL_LAYOUTS[task.name])
    if task.is_pair and task.columns != _PAIR:
        layouts.append(Layout((*_PAIR, "label")))
    return layouts


def load_hub(task: TextTask, repository: str) -> TextData:
    """Load the configuration of a hub data set that has the task's name.

    Raises:
        InputError: If the data cannot be loaded (the message explains offline use), or do not fit
            the task.
    """
    splits, notes = load_hub_splits(task, repository, ("train", *task.dev_splits))
    return TextData(task, splits.pop("train"), splits, notes)


def load_hub_splits(
    task: TextTask, repository: str, names: Sequence[str]
) -> tuple[dict[str, Texts], tuple[str, ...]]:
    """Load splits by their names, this package's or the hub's; return them with notes for the user.

    Raises:
        InputError: As `load_hub` raises; or if the hub has no such split, or hides its labels.
    """
    source = download(repository, task.name, task.name)
    where = f"{repository}'s {task.name}"
    splits = {
        name: _read_split(task, take_split(source, name, where), f"{where} {name_own_split(name)}")
        for name in names
    }
    notes = [
        note
        for split in splits.values()
        for note in (describe_split(task, split), *report_empty_texts(split, split.source))
    ]
    return splits, tuple(notes)


def _read_split(task: TextTask, source: Any, name: str) -> Texts:
    _check_labels(task, source.features["label"])
    texts = [list(source[column]) for column in task.columns]
    labels = np.array(source["label"], np.float32 if task.is_regression else np.int32)
    if np.any(labels == _HIDDEN):
        raise InputError(
            f"{name} has hidden labels ({_HIDDEN}): there is no score. Name another split, or give "
            "--file with labels"
        )
    return Texts(texts[0], texts[1] if task.is_pair else None, labels, name)


def _check_labels(task: TextTask, feature: Any) -> None:
    """Check the hub's label names: another order would silently train wrong labels."""
    names = getattr(feature, "names", None)
    if names != (task.labels and list(task.labels)):
        raise InputError(
            f"the hub's {task.name} now has the labels {names}, and this version expects "
            f"{task.labels}. Give --data-dir a folder that holds train.tsv and dev.tsv"
        )

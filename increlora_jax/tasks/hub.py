"""A task's examples from the Hugging Face hub, or from what its cache holds."""

from typing import Any

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.tasks.base import Split, Task, TaskData
from increlora_jax.tasks.counts import describe_split
from increlora_jax.tasks.folder import name_hub_split, report_empty_texts


def load_hub(task: Task, repository: str) -> TaskData:
    """Load the configuration of a hub data set that has the task's name.

    Raises:
      InputError: If it cannot be had (the message says how to work offline), or is not the task.
    """
    source = _download(repository, task.name)
    train, *dev = [
        _read_split(task, source[name_hub_split(split)], f"{repository}'s {task.name} {split}")
        for split in ("train", *task.dev_splits)
    ]
    splits = dict(zip(task.dev_splits, dev, strict=True))
    notes = [
        note
        for split in (train, *dev)
        for note in (describe_split(task, split), *report_empty_texts(split, split.source))
    ]
    return TaskData(task, train, splits, tuple(notes))


def _download(repository: str, name: str) -> Any:
    # Imported here: it takes seconds, and data from a folder does without.
    import datasets

    try:
        return datasets.load_dataset(repository, name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"{name} cannot be had from {repository} on the Hugging Face hub "
            f"({type(error).__name__}: {error}). To work offline give --data-dir a folder that "
            "holds train.tsv and dev.tsv, or load the task once on a machine that reaches the hub, "
            "copy its cache (HF_HOME) here and set HF_HUB_OFFLINE=1"
        ) from error


def _read_split(task: Task, source: Any, name: str) -> Split:
    _check_labels(task, source.features["label"])
    texts = [list(source[column]) for column in task.columns]
    labels = np.array(source["label"], np.float32 if task.is_regression else np.int32)
    return Split(texts[0], texts[1] if task.is_pair else None, labels, name)


def _check_labels(task: Task, feature: Any) -> None:
    """Hold the hub's label names against the task's: another order would train in silence."""
    names = getattr(feature, "names", None)
    if names != (task.labels and list(task.labels)):
        raise InputError(
            f"the hub's {task.name} now has the labels {names}, and this version expects "
            f"{task.labels}; give --data-dir a folder that holds train.tsv and dev.tsv"
        )

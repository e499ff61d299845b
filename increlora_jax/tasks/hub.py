"""A task's examples from the Hugging Face hub, or from what its cache holds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.tasks.counts import describe_split
from increlora_jax.tasks.folder import name_hub_split, name_own_split, report_empty_texts
from increlora_jax.tasks.labelled_texts import TextData, Texts, TextTask

_HIDDEN = -1
"""The label of a row whose true one the hub does not tell, in every GLUE task."""


def load_hub(task: TextTask, repository: str) -> TextData:
    """Load the configuration of a hub data set that has the task's name.

    Raises:
      InputError: If it cannot be had (the message says how to work offline), or is not the task.
    """
    splits, notes = load_hub_splits(task, repository, ("train", *task.dev_splits))
    return TextData(task, splits.pop("train"), splits, notes)


def load_hub_splits(
    task: TextTask, repository: str, names: Sequence[str]
) -> tuple[dict[str, Texts], tuple[str, ...]]:
    """Load splits by their names, this package's or the hub's; and notes for the user.

    Raises:
      InputError: As `load_hub`; or the hub has no such split, or hides its labels.
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


def take_split(source: Any, name: str, where: str) -> Any:
    """Return a split of `download`'s by its name here or on the hub.

    Raises:
      InputError: The hub has no such split.
    """
    if name_hub_split(name) not in source:
        held = ", ".join(map(name_own_split, source))
        raise InputError(
            f"--split {name}: {where} has {held}; name one of these, or give --file or --data-dir"
        )
    return source[name_hub_split(name)]


def download(repository: str, configuration: str | None, task: str) -> Any:
    """Return the splits of a hub data set by name.

    Raises:
      InputError: It cannot be had; the message names the task and says how to work offline.
    """
    # Imported here: it takes seconds, and data from a folder does without.
    import datasets

    try:
        return datasets.load_dataset(repository, configuration)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"{task} cannot be had from {repository} on the Hugging Face hub "
            f"({type(error).__name__}: {error}). To work offline give --data-dir a folder that "
            "holds the train and dev files, or load the task once on a machine that reaches the "
            "hub, copy its cache (HF_HOME) here and set HF_HUB_OFFLINE=1"
        ) from error


def _read_split(task: TextTask, source: Any, name: str) -> Texts:
    _check_labels(task, source.features["label"])
    texts = [list(source[column]) for column in task.columns]
    labels = np.array(source["label"], np.float32 if task.is_regression else np.int32)
    if np.any(labels == _HIDDEN):
        raise InputError(
            f"{name} has hidden labels ({_HIDDEN}): there is no score; name another split, or give "
            "--file with labels"
        )
    return Texts(texts[0], texts[1] if task.is_pair else None, labels, name)


def _check_labels(task: TextTask, feature: Any) -> None:
    """Hold the hub's label names against the task's: another order would train in silence."""
    names = getattr(feature, "names", None)
    if names != (task.labels and list(task.labels)):
        raise InputError(
            f"the hub's {task.name} now has the labels {names}, and this version expects "
            f"{task.labels}; give --data-dir a folder that holds train.tsv and dev.tsv"
        )

"""The data that an evaluation scores: the run's own dev splits, another folder's, or one file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from increlora_jax.config import TaskConfig
from increlora_jax.errors import InputError
from increlora_jax.run.build import columns_of
from increlora_jax.tasks.base import Split, Task, TaskData
from increlora_jax.tasks.data.lines import check_regular
from increlora_jax.tasks.folder import find_split, name_own_split
from increlora_jax.tasks.glue import GLUE_TASKS, REPOSITORY
from increlora_jax.tasks.hub import load_hub_splits
from increlora_jax.tasks.registry import load_task
from increlora_jax.tasks.split import known_task, load_split


class Source(NamedTuple):
    """Where the data is, as the user says it; all None for the run's own."""

    data_dir: str | None = None
    split: str | None = None
    file: str | None = None
    text_column: list[str] | None = None
    label_column: str | None = None

    @property
    def is_own(self) -> bool:
        """Whether the run's own dev data is asked for."""
        return not (self.data_dir or self.split or self.file)

    def check(self) -> None:
        """Raise InputError for an empty name, or a file beside a folder or split."""
        for name in ("data_dir", "split", "file"):
            if getattr(self, name) == "":
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} is empty: name one, or leave the flag out")
        if self.file is not None and (self.data_dir or self.split):
            raise InputError(
                "--file is scored alone: leave out --data-dir and --split, or leave out --file"
            )


class Scored(NamedTuple):
    """Data to score.

    Attributes:
      data: the splits under `dev`, with no training examples.
      origin: `run` for the run's own dev data by content, `other`, or `unknown`.
      notes: what the user should know of it.
    """

    data: TaskData
    origin: str
    notes: tuple[str, ...]


def load_scored(saved: Mapping[str, Any], config: TaskConfig, source: Source) -> Scored:
    """Load the data with the labels that the adapter was trained on.

    Raises:
        InputError: it cannot be read, lacks labels, or is not what the run was judged on although
            nothing else was asked for.
    """
    source.check()
    task = known_task(saved["task"], saved["labels"], saved.get("columns", ()))
    splits, notes = _load_splits(task, config, source)
    origin = _find_origin(saved, splits)
    if origin == "other":
        told = f"the data is not the run's dev data: {', '.join(splits)}"
        if source.is_own:
            raise InputError(
                f"{told} has changed since; restore it, or give --data-dir, --split or --file to "
                "score other data"
            )
        notes = (*notes, told)
    elif origin == "unknown":
        notes = (*notes, "this adapter is of an older version: whether the data is the run's is not"
                 " known")  # fmt: skip
    empty = Split([], None, np.zeros(0, np.int32))
    scored = replace(task, dev_splits=tuple(splits))
    return Scored(TaskData(scored, empty, splits), origin, notes)


def _load_splits(
    task: Task, config: TaskConfig, source: Source
) -> tuple[dict[str, Split], tuple[str, ...]]:
    config = replace(
        config,
        text_column=source.text_column or config.text_column,
        label_column=source.label_column or config.label_column,
    )
    columns = columns_of(config)
    if source.file is not None:
        split, notes = load_split(task, _existing(source.file), columns=columns)
        return {Path(source.file).name: split}, notes
    folder = source.data_dir or config.data_dir
    names = (source.split,) if source.split else task.dev_splits
    if folder is None:
        return _load_own(task, config, names)
    path = Path(folder).expanduser()
    files = {name: _find_file(path, name) for name in names}
    read = {name: load_split(task, file, columns=columns) for name, file in files.items()}
    notes = tuple(note for _, told in read.values() for note in told)
    return {name: split for name, (split, _) in read.items()}, notes


def _load_own(
    task: Task, config: TaskConfig, names: tuple[str, ...]
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Load splits of a task that brings its data, or has it on the hub."""
    if task.name in GLUE_TASKS:
        return load_hub_splits(task, REPOSITORY, names)
    data = load_task(task.name, None, config.problem_type)
    held = {**data.dev, "train": data.train}
    for name in names:
        if name_own_split(name) not in held:
            raise InputError(
                f"--split {name}: {task.name} brings {', '.join(held)}; give --file or --data-dir"
            )
    return {name: held[name_own_split(name)] for name in names}, data.notes


def _find_file(folder: Path, split: str) -> Path:
    try:
        return find_split(folder, split)
    except InputError as error:
        raise InputError(f"{error}; --split names another split, and --file a file") from error


def _existing(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.exists():
        raise InputError(f"--file {file}: no such file; give one with the task's columns")
    if path.is_dir():
        raise InputError(f"--file {file}: a folder, not a file; give it by --data-dir")
    check_regular(path)
    return path


def _find_origin(saved: Mapping[str, Any], splits: Mapping[str, Split]) -> str:
    if "dev_data" not in saved:
        return "unknown"
    own = saved["dev_data"].values()
    return "run" if all(split.identify() in own for split in splits.values()) else "other"

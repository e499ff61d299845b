"""Data of an evaluation: the run's own dev splits, another folder's, or one file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from increlora_jax.config import TaskConfig
from increlora_jax.errors import InputError
from increlora_jax.tasks.data.lines import check_regular
from increlora_jax.tasks.kind import Kind, Split, TaskData, identify
from increlora_jax.tasks.registry import restore_kind


class Source(NamedTuple):
    """Place of the data, as the user gives it; all None for the run's own."""

    data_dir: str | None = None
    split: str | None = None
    file: str | None = None
    text_column: list[str] | None = None
    label_column: str | None = None

    @property
    def is_own(self) -> bool:
        """True if the run's own dev data is scored."""
        return not (self.data_dir or self.split or self.file)

    def check(self) -> None:
        """Raise an InputError for an empty name, or for a file beside a folder or split."""
        for name in ("data_dir", "split", "file"):
            if getattr(self, name) == "":
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} is empty. Name one, or leave the flag out")
        if self.file is not None and (self.data_dir or self.split):
            raise InputError(
                "--file is scored alone. Leave out --data-dir and --split, or leave out --file"
            )


class Scored(NamedTuple):
    """Data to score.

    Attributes:
        data: The splits under `dev`, without training examples.
        origin: `run` if the content equals the run's own dev data, `other` if not, or `unknown`.
        notes: Notes for the user.
    """

    data: TaskData
    origin: str
    notes: tuple[str, ...]


def load_scored(saved: Mapping[str, Any], config: TaskConfig, source: Source) -> Scored:
    """Load the data with the labels that the adapter was trained on.

    Raises:
        InputError: If the data cannot be read or lack labels; or if the run's own data were asked
            for and have changed.
    """
    source.check()
    kind = restore_kind(saved, config)
    if "columns" not in kind.saved and (source.text_column or source.label_column):
        raise InputError(
            f"--text-column and --label-column are not for {kind.task}, whose files have fixed "
            "columns. Leave them out"
        )
    splits, notes = _load_splits(kind, config, source)
    origin = _find_origin(saved, splits)
    if origin == "other":
        told = f"the data is not the run's dev data: {', '.join(splits)}"
        if source.is_own:
            raise InputError(
                f"{told} has changed since. Restore it, or give --data-dir, --split or --file to "
                "score other data"
            )
        notes = (*notes, told)
    elif origin == "unknown":
        notes = (*notes, "the model does not say which data its run was judged on: whether these"
                 " are the same is not known")  # fmt: skip
    scored = replace(kind, dev_splits=tuple(splits))
    return Scored(TaskData(scored, None, splits), origin, notes)


def _load_splits(
    kind: Kind, config: TaskConfig, source: Source
) -> tuple[Mapping[str, Split], tuple[str, ...]]:
    config = replace(
        config,
        text_column=source.text_column or config.text_column,
        label_column=source.label_column or config.label_column,
    )
    if source.file is not None:
        split, notes = kind.read(_existing(source.file), config)
        return {Path(source.file).name: split}, notes
    folder = source.data_dir or config.data_dir
    names = (source.split,) if source.split else kind.dev_splits
    if folder is None:
        return kind.load_own(names)
    path = Path(folder).expanduser()
    files = {name: _find_file(kind, path, name) for name in names}
    read = {name: kind.read(file, config) for name, file in files.items()}
    notes = tuple(note for _, told in read.values() for note in told)
    return {name: split for name, (split, _) in read.items()}, notes


def _find_file(kind: Kind, folder: Path, split: str) -> Path:
    try:
        return kind.find(folder, split)
    except InputError as error:
        raise InputError(f"{error}. --split names another split, and --file a file") from error


def _existing(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.exists():
        raise InputError(f"--file {file}: no such file. Give one with the task's columns")
    if path.is_dir():
        raise InputError(f"--file {file}: a folder, not a file. Give it by --data-dir")
    check_regular(path)
    return path


def _find_origin(saved: Mapping[str, Any], splits: Mapping[str, Split]) -> str:
    if "dev_data" not in saved:
        return "unknown"
    own = saved["dev_data"].values()
    return "run" if all(identify(split) in own for split in splits.values()) else "other"

"""A run's folder: what it holds, and who may write to it."""

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from increlora_jax.config import RunConfig
from increlora_jax.errors import InputError, WriteError
from increlora_jax.files.json_object import read_json_object
from increlora_jax.files.kinds import check_keys
from increlora_jax.files.replace import remove, replace_file
from increlora_jax.run.command_line import read_run, write_run
from increlora_jax.run.sweep import members_of
from increlora_jax.runtime.ending import TRACEBACK
from increlora_jax.runtime.streams import tell
from increlora_jax.training.checkpoint import Saved, clear_checkpoints

ADAPTER = "adapter"
BEST_ADAPTER = "adapter-best"
CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
LOCK = ".lock"
METRICS = "metrics.jsonl"
RESULTS = "results.json"

_RESULT_KINDS: dict[str, Any] = {
    "identity": dict[str, str],
    "metrics": dict[str, float],
    "rank_budget": int | None,
    "total_rank": int,
    "full_modules": list[str],
    "seconds": float,
}
"""What is read of the results of a finished run."""

_KINDS_OF_SEVERAL: dict[str, Any] = {"identity": dict[str, str], "summary": str, "seconds": float}
"""And of those of runs that trained together."""

OF_A_RUN = (RESULTS, CONFIG, METRICS, ADAPTER, BEST_ADAPTER, CHECKPOINTS)


_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
"""By these a lock says that somebody has it; any other error, that there are no locks."""


class Held(Enum):
    """The state of a run in its folder."""

    NOTHING = "nothing"
    BEGUN = "begun"
    FINISHED = "finished"


def look_into(folder: Path, config: RunConfig) -> Held:
    """Tell how far a run has come in its folder; touches nothing.

    Raises:
        InputError: the folder holds another run, and in which settings that differs; or a file is
            where a folder is needed.
        WriteError: the folder lies below a file, or cannot be written.
    """
    _check_place(folder)
    held = _find_held(folder, config)
    if held is not Held.FINISHED:  # whose results are only read
        _check_writable(folder)
    return held


def _find_held(folder: Path, config: RunConfig) -> Held:
    found = [name for name in OF_A_RUN if (folder / name).exists()]
    if not found or config.training.overwrite_output_dir:
        return Held.NOTHING
    if CONFIG not in found or not config.training.resume:
        raise InputError(
            f"--output-dir {folder} already holds a run ({', '.join(found)}); choose another "
            "folder or pass --overwrite-output-dir"
        )
    there, here = read_run(folder / CONFIG).settled(), config.settled()
    differing = [f"{key} ({there[key]} there, {here[key]} here)" for key in here
                 if there[key] != here[key]]  # fmt: skip
    if differing:
        raise InputError(
            f"--output-dir {folder} already holds a run with other settings: "
            f"{', '.join(differing)}; give the same to go on with it, choose another folder or "
            "pass --overwrite-output-dir"
        )
    return Held.FINISHED if RESULTS in found else Held.BEGUN


def _check_place(folder: Path) -> None:
    """Check that the folder can be made, as far as that is known, and hold checkpoints.

    Raises:
        InputError: a file or a broken link is in its place, or in that of its checkpoints.
        WriteError: the folder lies below a file.
    """
    for path in (folder / CHECKPOINTS, folder):
        if _is_in_the_way(path):
            raise InputError(
                f"--output-dir {folder}: {path} is a file and no folder; move it away, or choose "
                "another folder"
            )
    for path in folder.absolute().parents:
        if _is_in_the_way(path):
            raise WriteError(f"--output-dir {folder} cannot be written: {path} is a file")


def _check_writable(folder: Path) -> None:
    """Check that the folder, or the one that it will be made in, takes files; leaves none.

    Raises:
        WriteError: a file cannot be made there.
    """
    path = folder.absolute()
    there = next(one for one in (path, *path.parents) if one.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise WriteError(
            f"--output-dir {folder} cannot be written: {there}: {error.strerror}; choose another "
            "folder, or mend this one"
        ) from error


def _is_in_the_way(path: Path) -> bool:
    return os.path.lexists(path) and not path.is_dir()


def read_finished(folder: Path, identity: dict[str, str]) -> dict[str, Any]:
    """Read the results of a finished run that was made of what is here now.

    Raises:
        InputError: the file is damaged, or it was made of something else.
    """
    results = read_results(folder)
    check_identity(f"the run in --output-dir {folder}", results["identity"], identity)
    return results


def check_saved(folder: Path, saved: Saved, identity: dict[str, str], count: int) -> None:
    """See that a checkpoint is of these runs, so many, made of what is here now.

    Raises:
        InputError: it is not.
    """
    check_identity(f"the run in --output-dir {folder}", saved.identity, identity)
    if len(saved.progress) != count:
        raise InputError(
            f"the checkpoint of step {saved.progress[0].step} in {folder} is of "
            f"{len(saved.progress)} runs, and here are {count}; choose another --output-dir"
        )


def check_identity(what: str, there: dict[str, str], here: dict[str, str]) -> None:
    """See that what was saved was made of what is here now, by content.

    Raises:
        InputError: it was not; both are named.
    """
    differing = [f"{key} ({there.get(key)} there, {here[key]} here)" for key in here
                 if there.get(key) != here[key]]  # fmt: skip
    if differing:
        raise InputError(
            f"{what} was made of something else: {', '.join(differing)}; give what it was made "
            "of, or choose another folder"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder, and keep every other process out of it; the lock ends with the process.

    Raises:
        WriteError: the folder cannot be made.
        InputError: another process is at work there.
    """
    with _naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a", encoding="utf-8")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                raise InputError(
                    f"--output-dir {folder}: another process is at work on this run; wait for it, "
                    "or choose another folder"
                ) from None
            tell(
                f"note: {folder / LOCK} cannot be locked ({error.strerror}): nothing keeps a "
                "second process out of this run"
            )
        yield


def clear(folder: Path, config: RunConfig, *, keeps_checkpoints: bool = False) -> None:
    """Make room for new runs, and write down the settings of all and of each.

    Args:
        folder: the folder of all runs.
        config: its settings.
        keeps_checkpoints: where no sound one is left; what was set aside then stays.

    Raises:
        WriteError: the folder cannot be written.
    """
    members = members_of(config)
    with _naming(folder):
        for inner in dict.fromkeys(("", *_members_there(folder), *(m.name for m in members))):
            # The settings go first: without them what remains is nobody's run.
            for name in (CONFIG, RESULTS, METRICS, ADAPTER, BEST_ADAPTER, TRACEBACK):
                remove(folder / inner / name)
            if not keeps_checkpoints:
                clear_checkpoints(folder / inner / CHECKPOINTS)
        for member in members:
            (folder / member.name).mkdir(exist_ok=True)
    for inner, own in {"": config, **{m.name: m.config for m in members}}.items():
        with replace_file(folder / inner / CONFIG) as aside:
            write_run(own, aside)


def _members_there(folder: Path) -> list[str]:
    """The folders of runs that have trained together here, as far as that can be known."""
    try:
        return [member.name for member in members_of(read_run(folder / CONFIG))]
    except InputError:  # what is to be overwritten need not be sound
        return []


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write `results.json`, which makes a run finished.

    Raises:
        WriteError: it cannot be written.
    """
    text = json.dumps(results, indent=2) + "\n"
    with replace_file(folder / RESULTS) as aside:
        aside.write_text(text, encoding="utf-8")


def read_results(folder: Path) -> dict[str, Any]:
    """Read what a finished run has left.

    Raises:
        InputError: the file is damaged.
    """
    results = read_json_object(folder / RESULTS, allow_nan=True)
    kinds = _KINDS_OF_SEVERAL if "summary" in results else _RESULT_KINDS
    check_keys(folder / RESULTS, results, kinds, may_have_others=True)
    return results


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"--output-dir {folder} cannot be written: {error}") from error

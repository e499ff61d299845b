"""A run's folder: its state, its files, and the lock against other processes."""

import errno
import fcntl
import json
import os
import shutil
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
from increlora_jax.files.replace import remove, replace_file, replace_folder
from increlora_jax.nn.adapter_files import read_adapter_config
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
REPORT = "report.html"
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
"""Keys read from the results of a finished run."""

_KINDS_OF_SEVERAL: dict[str, Any] = {"identity": dict[str, str], "summary": str, "seconds": float}
"""Keys read from the results of runs that trained together."""

OF_A_RUN = (RESULTS, CONFIG, METRICS, ADAPTER, BEST_ADAPTER, CHECKPOINTS)


_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
"""Errors of a lock that another process holds; any other error means that locks do not work."""


class Held(Enum):
    """State of a run in its folder."""

    NOTHING = "nothing"
    BEGUN = "begun"
    FINISHED = "finished"


def name_adapter(which: str) -> str:
    """Return the name of the folder of the adapter of the `last` step or the `best` evaluation.

    Raises:
        InputError: If `which` is neither.
    """
    names = {"last": ADAPTER, "best": BEST_ADAPTER}
    if which not in names:
        raise InputError(f"adapter {which!r}: choose last or best")
    return names[which]


def look_into(folder: Path, config: RunConfig) -> Held:
    """Return how far a run has come in its folder; nothing is changed.

    Raises:
        InputError: If the folder holds another run, or a file is in place of a folder. The message
            lists the settings that differ.
        WriteError: If the folder is below a file, or cannot be written.
    """
    _check_place(folder)
    held = _find_held(folder, config)
    if held is not Held.FINISHED:  # a finished run is only read
        _check_writable(folder)
    return held


def _find_held(folder: Path, config: RunConfig) -> Held:
    found = [name for name in OF_A_RUN if (folder / name).exists()]
    if not found or config.training.overwrite_output_dir:
        return Held.NOTHING
    if CONFIG not in found or not config.training.resume:
        raise InputError(
            f"--output-dir {folder} already holds a run ({', '.join(found)}). Choose another "
            "folder or pass --overwrite-output-dir"
        )
    there, here = read_run(folder / CONFIG).settled(), config.settled()
    differing = [f"{key} (saved {there[key]}, given {here[key]})" for key in here
                 if there[key] != here[key]]  # fmt: skip
    if differing:
        raise InputError(
            f"--output-dir {folder} already holds a run with other settings: "
            f"{', '.join(differing)}. Pass the same to resume it, choose another folder or "
            "pass --overwrite-output-dir"
        )
    return Held.FINISHED if RESULTS in found else Held.BEGUN


def _check_place(folder: Path) -> None:
    """Check that the folder and its checkpoints can be created, as far as the paths show.

    Raises:
        InputError: If a file or a broken link is in place of the folder or of its checkpoints.
        WriteError: If the folder is below a file.
    """
    for path in (folder / CHECKPOINTS, folder):
        if _is_in_the_way(path):
            raise InputError(
                f"--output-dir {folder}: {path} is a file, not a folder. Move it away, or choose "
                "another folder"
            )
    for path in folder.absolute().parents:
        if _is_in_the_way(path):
            raise WriteError(f"--output-dir {folder} cannot be written: {path} is a file")


def _check_writable(folder: Path) -> None:
    """Check that the folder, or its nearest existing parent, takes files; the test file is removed.

    Raises:
        WriteError: If no file can be created.
    """
    path = folder.absolute()
    there = next(one for one in (path, *path.parents) if one.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise WriteError(
            f"--output-dir {folder} cannot be written: {there}: {error.strerror}. Choose another "
            "folder, or mend this one"
        ) from error


def _is_in_the_way(path: Path) -> bool:
    return os.path.lexists(path) and not path.is_dir()


def read_finished(folder: Path, identity: dict[str, str]) -> dict[str, Any]:
    """Read the results of a finished run, after checking that its inputs are the present ones.

    Raises:
        InputError: If the file is damaged, or the run was created with other inputs.
    """
    results = read_results(folder)
    check_identity(f"the run in --output-dir {folder}", results["identity"], identity)
    return results


def check_saved(folder: Path, saved: Saved, identity: dict[str, str], count: int) -> None:
    """Check that a checkpoint belongs to these runs and to the present inputs.

    Args:
        folder: The run's folder, for messages.
        saved: The checkpoint's notes.
        identity: The identities of the present inputs.
        count: The number of runs that train together.

    Raises:
        InputError: If the checkpoint belongs to others.
    """
    check_identity(f"the run in --output-dir {folder}", saved.identity, identity)
    if len(saved.progress) != count:
        raise InputError(
            f"the checkpoint of step {saved.progress[0].step} in {folder} is of "
            f"{len(saved.progress)} runs, and {count} are given. Choose another --output-dir"
        )


def check_identity(what: str, there: dict[str, str], here: dict[str, str]) -> None:
    """Check that something saved was created with the present inputs, by content.

    Args:
        what: Words for the saved thing.
        there: Its identities.
        here: The present identities.

    Raises:
        InputError: If they differ; the message has both.
    """
    differing = [f"{key} (saved {there.get(key)}, given {here[key]})" for key in here
                 if there.get(key) != here[key]]  # fmt: skip
    if differing:
        raise InputError(
            f"{what} was created with other inputs: {', '.join(differing)}. Pass the same, or "
            "choose another folder"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder and lock it; the lock ends with the process.

    Raises:
        WriteError: If the folder cannot be created.
        InputError: If another process holds the lock.
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
                    f"--output-dir {folder}: another process is at work on this run. Wait for it, "
                    "or choose another folder"
                ) from None
            tell(
                f"note: {folder / LOCK} cannot be locked ({error.strerror}): nothing keeps a "
                "second process out of this run"
            )
        yield


def clear(folder: Path, config: RunConfig, *, keeps_checkpoints: bool = False) -> None:
    """Remove an old run from the folder, and write the settings of all new runs and of each.

    Args:
        folder: The folder of all runs.
        config: Its settings.
        keeps_checkpoints: Whether damaged checkpoints, set aside by the resumed run, stay.

    Raises:
        WriteError: If the folder cannot be written.
    """
    members = members_of(config)
    with _naming(folder):
        for inner in dict.fromkeys(("", *_members_there(folder), *(m.name for m in members))):
            # Settings are removed first: without them, leftovers belong to no run.
            for name in (CONFIG, RESULTS, METRICS, REPORT, ADAPTER, BEST_ADAPTER, TRACEBACK):
                remove(folder / inner / name)
            if not keeps_checkpoints:
                clear_checkpoints(folder / inner / CHECKPOINTS)
        for member in members:
            (folder / member.name).mkdir(exist_ok=True)
    for inner, own in {"": config, **{m.name: m.config for m in members}}.items():
        with replace_file(folder / inner / CONFIG) as aside:
            write_run(own, aside)


def _members_there(folder: Path) -> list[str]:
    """Return the folders of runs that have trained together here, if their settings can be read."""
    try:
        return [member.name for member in members_of(read_run(folder / CONFIG))]
    except InputError:  # settings that are overwritten need not be sound
        return []


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write `results.json`, which marks a run as finished.

    Raises:
        WriteError: If it cannot be written.
    """
    text = json.dumps(results, indent=2) + "\n"
    with replace_file(folder / RESULTS) as aside:
        aside.write_text(text, encoding="utf-8")


def read_results(folder: Path) -> dict[str, Any]:
    """Read the results of a finished run.

    Raises:
        InputError: If the file is damaged.
    """
    results = read_json_object(folder / RESULTS, allow_nan=True)
    kinds = _KINDS_OF_SEVERAL if "summary" in results else _RESULT_KINDS
    check_keys(folder / RESULTS, results, kinds, may_have_others=True)
    return results


def take_best(folder: Path) -> dict[str, Any]:
    """Make the best adapter of a run the last one; return its configuration.

    Raises:
        InputError: If there is no sound best adapter.
        WriteError: If the folder cannot be written.
    """
    saved = read_adapter_config(folder / BEST_ADAPTER)
    with replace_folder(folder / ADAPTER) as aside:
        shutil.copytree(folder / BEST_ADAPTER, aside, dirs_exist_ok=True)
    return saved


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"--output-dir {folder} cannot be written: {error}") from error

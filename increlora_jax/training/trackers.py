"""Trackers of experiments that the numbers of a run go to: TensorBoard, Weights & Biases, Trackio.

A tracker is a convenience: if it fails in the middle of a run, a note says so.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from increlora_jax.errors import InputError
from increlora_jax.files.replace import replace_file
from increlora_jax.runtime.streams import tell
from increlora_jax.training.board import Board

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
"""The package of each tracker."""

PROJECT = "increlora_jax"
"""Name of the project in a service; WANDB_PROJECT or TRACKIO_PROJECT names another."""

_ID_FILE = "tracker-id"


class Tracker(Protocol):
    """Receiver of scalars by name."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a step."""

    def close(self) -> None:
        """Write everything that is still held back."""


class Tracked(NamedTuple):
    """A run, for its trackers.

    Attributes:
        folder: of the run.
        name: that is shown.
        step: that it resumes from; 0 for a new run.
        settings: by name.
    """

    folder: Path
    name: str
    step: int
    settings: Mapping[str, Any]


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        InputError: If one is missing, or `none` stands beside others.
    """
    if "none" in names and len(set(names)) > 1:
        raise InputError("--report-to none excludes the others. Leave out none, or the others")
    for name in names:
        if name != "none":
            import_tracker(name)


def open_trackers(names: Sequence[str], run: Tracked) -> list[Tracker]:
    """Open the trackers of these names for a run.

    Raises:
        InputError: If a package is missing, or refuses the run.
    """
    chosen = [name for name in dict.fromkeys(names) if name != "none"]
    own = _identify(run) if {"wandb", "trackio"} & {*chosen} else ""
    return [_OPENERS[name](run, own) for name in chosen]


def import_tracker(name: str) -> ModuleType:
    """Import the package of a tracker.

    Raises:
        InputError: If it is not installed.
    """
    try:
        if name == "tensorboard":
            import tensorboardX

            return tensorboardX
        if name == "wandb":
            import wandb

            return wandb
        import trackio
    except ImportError:
        raise InputError(
            f"--report-to {name} needs {PACKAGES[name]}: pip install 'increlora_jax[{name}]'"
        ) from None
    return trackio


class _Service:
    """A run of Weights & Biases or Trackio, which have the same calls."""

    def __init__(self, name: str, run: Any, finish: Callable[[], None]):
        self._name = name
        self._run: Any = run
        self._finish = finish

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._run is not None:
            with self._surviving():
                self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        if self._run is not None:
            with self._surviving(), redirect_stdout(sys.stderr):
                self._finish()

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._run = None
            tell(f"note: --report-to {self._name} ends here: {error}")


def _open_board(run: Tracked, _: str) -> Tracker:
    import_tracker("tensorboard")
    return Board(run.folder / "tensorboard", run.step)


def _open_wandb(run: Tracked, own: str) -> Tracker:
    wandb = import_tracker("wandb")
    options = {
        "project": os.environ.get("WANDB_PROJECT", PROJECT),
        "dir": str(run.folder),
        "id": own,
        "name": run.name,
        "config": dict(run.settings),
        "resume": "allow",
        "reinit": "create_new",  # several runs may train together
    }
    with _refusing("wandb", "Without a network, set WANDB_MODE=offline"):
        started = wandb.init(**options, settings=wandb.Settings(console="off", silent=True))
    return _Service("wandb", started, started.finish)


def _open_trackio(run: Tracked, own: str) -> Tracker:
    trackio = import_tracker("trackio")
    options = {
        "project": os.environ.get("TRACKIO_PROJECT", PROJECT),
        "name": f"{run.name}-{own}",
        "config": dict(run.settings),
        "resume": "allow",
        "embed": False,
    }
    with _refusing("trackio", "Mend this, or leave the tracker out"):
        started = trackio.init(**options)

    def finish() -> None:
        started.finish()
        with suppress(RuntimeError):  # otherwise the last run is finished again at the exit
            trackio.finish()

    return _Service("trackio", started, finish)


_OPENERS: dict[str, Callable[[Tracked, str], Tracker]] = {
    "tensorboard": _open_board,
    "wandb": _open_wandb,
    "trackio": _open_trackio,
}


@contextmanager
def _refusing(name: str, remedy: str) -> Iterator[None]:
    """Turn the errors of a service into one of ours; its messages go to standard error."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"--report-to {name}: {reason}. {remedy}") from error


def _identify(run: Tracked) -> str:
    """Return the run's name in trackers: a new one for a new run, the old one if it resumes."""
    file = run.folder / _ID_FILE
    if run.step and file.is_file():
        return file.read_text(encoding="utf-8").strip()
    name = uuid4().hex[:8]
    with replace_file(file) as aside:
        aside.write_text(name + "\n", encoding="utf-8")
    return name

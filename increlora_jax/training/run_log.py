"""The log of a run as it trains: `metrics.jsonl`, and trackers on request."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from increlora_jax.errors import InputError, WriteError
from increlora_jax.training.trackers import Tracker

METRICS_FILE = "metrics.jsonl"
GROWTH = "growth"
"""The split of lines about ranks: of step 0, before it, and of each later change."""

STOPPED = "stopped"
"""The split of the last line of a run that stops early."""


class RunLog:
    """Writer of the numbers of a run to its files; a context manager.

    The file holds nothing that depends on the clock.

    Args:
        folder: of the run.
        trackers: that get the same numbers, except by module; closed with the log. Default: none.
        kept_bytes: the length of the file at that step. Later lines are removed, since the run
            writes them again. Default 0.
        is_silent: whether this process writes nothing, since another does; default False.
    """

    def __init__(
        self,
        folder: Path,
        *,
        trackers: Sequence[Tracker] = (),
        kept_bytes: int = 0,
        is_silent: bool = False,
    ):
        self._path = folder / METRICS_FILE
        self._lines = None if is_silent else self._open(kept_bytes)
        self._trackers = trackers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for tracker in self._trackers:
            tracker.close()
        if self._lines is not None:
            try:
                with self._naming():
                    self._lines.close()
            except WriteError:
                if error is None:  # an earlier error is worse
                    raise

    def write(self, step: int, split: str, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a training step, or the metrics on dev after so many steps."""
        # JSON has no word for numbers that are not finite.
        plain = {name: v if math.isfinite(v) else None for name, v in numbers.items()}
        self._write_line(step, split, plain)
        for tracker in self._trackers:
            tracker.write(step, {f"{split}/{name}": value for name, value in numbers.items()})

    def write_growth(self, step: int, numbers: Mapping[str, int | Mapping[str, float]]) -> None:
        """Write the ranks after a step and the importance behind them, by module."""
        self._write_line(step, GROWTH, numbers)

    def write_stop(self, step: int) -> None:
        """Write that the run stops early after so many steps."""
        self._write_line(step, STOPPED, {})

    def _write_line(self, step: int, split: str, numbers: Mapping[str, Any]) -> None:
        if self._lines is None:
            return
        with self._naming():
            self._lines.write(json.dumps({"step": step, "split": split, **numbers}) + "\n")
            self._lines.flush()

    def sync(self) -> int:
        """Write every line to disk; return the length of the file in bytes."""
        if self._lines is None:
            return 0
        with self._naming():
            self._lines.flush()
            os.fsync(self._lines.fileno())
        return self._lines.tell()

    def _open(self, kept_bytes: int) -> TextIO:
        with self._naming():
            lines = self._path.open("r+" if kept_bytes else "w", encoding="utf-8")
            if (found := lines.seek(0, os.SEEK_END)) < kept_bytes:
                raise InputError(
                    f"{self._path} has {found} bytes, fewer than the {kept_bytes} it had when the "
                    "checkpoint was saved. Put the file back, or begin anew with "
                    "--overwrite-output-dir"
                )
            lines.seek(kept_bytes)
            lines.truncate()
        return lines

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(f"{self._path} cannot be written: {error}") from error

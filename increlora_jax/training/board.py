"""TensorBoard files: a convenience, whose loss never ends a run."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from increlora_jax.runtime.streams import tell


class Board:
    """Writes scalars to an events file, until the file can no longer be written.

    Writes in the caller's thread: a queue with a writer of its own, once that has failed, would
    keep the run waiting for ever.
    """

    def __init__(self, folder: Path, step: int):
        self._folder = folder
        self._package = _import_package()
        self._writer: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = self._package.event_file_writer.EventsWriter(str(folder / "events"))
        except OSError as error:
            self._give_up(error)
        # TensorBoard hides what an earlier process wrote of this step and later ones.
        event = self._package.proto.event_pb2
        self._write(event.Event(step=step, file_version="brain.Event:2"))
        start = event.SessionLog(status=event.SessionLog.START)
        self._write(event.Event(step=step, session_log=start))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write scalars by name; they are on disk then."""
        event, summary = self._package.proto.event_pb2, self._package.proto.summary_pb2
        values = [summary.Summary.Value(tag=n, simple_value=float(v)) for n, v in numbers.items()]
        told = summary.Summary(value=values)
        self._write(event.Event(step=step, wall_time=time.time(), summary=told))

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up(error)

    def _write(self, event: Any) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        tell(f"note: {self._folder} cannot be written, TensorBoard's files end here: {error}")


def _import_package() -> ModuleType:
    import tensorboardX.event_file_writer

    return tensorboardX

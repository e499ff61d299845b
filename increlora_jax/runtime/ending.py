"""Ends of a command: one line of text, and an exit status for each kind of end."""

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from increlora_jax.errors import (
    InputError,
    NonFiniteError,
    OutOfMemoryError,
    WriteError,
    naming_flags,
)
from increlora_jax.runtime.out_of_memory import describe_shortage, is_out_of_memory
from increlora_jax.runtime.signals import Preempted
from increlora_jax.runtime.streams import lasting, tell

DEBUG = "INCRELORA_DEBUG"
TRACEBACK = "traceback.txt"
INTERNAL = 1
"""The exit status of a bug in this project."""

_INTERRUPTED = 130


class Ending:
    """A command's end; `folder` is that of its run, as soon as there is one."""

    folder: Path | None = None


@contextmanager
def fail_clearly(when_stopped: str = "") -> Iterator[Ending]:
    """Print one line for the error or signal that ends a command, and exit with its status.

    The statuses are 1 for a bug and 2 for an input that the user can mend. They are 3 for numbers
    that are not finite, 4 for a file that cannot be written, 5 for lack of memory, and 128 + n for
    signal n.

    Args:
        when_stopped: Text appended to the line about a signal, such as how to resume.
    """
    ending = Ending()
    with lasting(), naming_flags():
        try:
            yield ending
        except (InputError, NonFiniteError, WriteError, OutOfMemoryError) as error:
            _leave(error, str(error), error.exit_status)
        except Preempted as stopped:
            _leave_now(f"stopped by {stopped}{when_stopped}", stopped.exit_status)
        except KeyboardInterrupt:
            _leave_now(f"stopped by SIGINT{when_stopped}", _INTERRUPTED)
        except Exception as error:
            if is_out_of_memory(error):
                _leave(error, describe_shortage(error), OutOfMemoryError.exit_status)
            if os.environ.get(DEBUG) == "1":
                raise
            _leave(error, _keep_traceback(error, ending.folder), INTERNAL)


def _leave(error: Exception, message: str, status: int) -> NoReturn:
    tell("error: " + " ".join(message.splitlines()))
    raise SystemExit(status) from error


def _leave_now(message: str, status: int) -> NoReturn:
    """Exit at once: an orderly exit would crash a compilation in another thread."""
    tell(message)
    sys.stdout.flush()
    os._exit(status)


def _keep_traceback(error: Exception, folder: Path | None) -> str:
    """Write the traceback to a file, or print it; return the line about it."""
    said = " ".join(traceback.format_exception_only(error)[-1].splitlines())
    text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sys.argv}\n" + "".join(
        traceback.format_exception(error)
    )
    try:
        kept = _write(text, folder)
    except OSError:
        tell(text)
        return f"internal error: {said}; its traceback is above: please report both"
    return (
        f"internal error: {said}; this is a bug: please report it with its traceback, which is in "
        f"{kept} ({DEBUG}=1 shows it at once)"
    )


def _write(text: str, folder: Path | None) -> Path:
    if folder is not None and folder.is_dir():
        try:
            (folder / TRACEBACK).write_text(text, encoding="utf-8")
            return folder / TRACEBACK
        except OSError:  # the disk may be full or read-only; try the next folder
            pass
    handle, name = tempfile.mkstemp(prefix="increlora-", suffix=".txt", text=True)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)

"""The ends of a command: one line each, and an exit status of its own."""

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from increlora_jax.errors import InputError, NonFiniteError, OutOfMemoryError, WriteError
from increlora_jax.runtime.out_of_memory import describe_shortage, is_out_of_memory
from increlora_jax.runtime.signals import Preempted
from increlora_jax.runtime.streams import lasting, tell

DEBUG = "INCRELORA_DEBUG"
TRACEBACK = "traceback.txt"
INTERNAL = 1
"""The exit status of an error that is a bug of this project."""

_INTERRUPTED = 130


class Ending:
    """The end of a command: the folder of its run, once it has one."""

    folder: Path | None = None


@contextmanager
def fail_clearly(when_stopped: str = "") -> Iterator[Ending]:
    """Say in a line what ends a command, and leave with the status that belongs to it.

    1: a bug, whose traceback is kept; 2: input that the user can mend; 3: numbers gone bad;
    4: a file that cannot be written; 5: out of memory; 128 + number of the signal: stopped by it.

    Args:
        when_stopped: what to add to the line about a signal, such as how to go on.
    """
    ending = Ending()
    with lasting():
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
    """Leave without an orderly exit: a compiler at work in a thread of its own would crash it."""
    tell(message)
    sys.stdout.flush()
    os._exit(status)


def _keep_traceback(error: Exception, folder: Path | None) -> str:
    """Write the traceback where it can be found; say where, or tell it if no file takes it."""
    said = " ".join(traceback.format_exception_only(error)[-1].splitlines())
    text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sys.argv}\n" + "".join(
        traceback.format_exception(error)
    )
    try:
        kept = _write(text, folder)
    except OSError:
        tell(text)
        return f"internal error: {said}; its traceback stands above: please report both"
    return (
        f"internal error: {said}; this is a bug: please report it with its traceback, which is in "
        f"{kept} ({DEBUG}=1 shows it at once)"
    )


def _write(text: str, folder: Path | None) -> Path:
    if folder is not None and folder.is_dir():
        try:
            (folder / TRACEBACK).write_text(text, encoding="utf-8")
            return folder / TRACEBACK
        except OSError:  # the disk may be full or read-only; there is another
            pass
    handle, name = tempfile.mkstemp(prefix="increlora-", suffix=".txt", text=True)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)

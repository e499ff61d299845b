"""Filters for messages of libraries that users of the commands cannot act on."""

import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from increlora_jax.runtime.console import is_terminal, say

BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
"""Environment variables that the libraries read on import; a user's own values are kept."""


_IDLE = {
    "transformers": "PyTorch was not found",
    # Token ids outside of the vocabulary matter only to Transformers' own generation.
    "transformers.configuration_utils": "Model config: ",
}
"""Beginnings of messages to hide, by logger; filters do not apply to child loggers."""

_OWN = "increlora_jax"


def quiet_libraries() -> None:
    """Hide such messages, and print each warning of this package once, as a note.

    Other warnings are unchanged.
    """
    _tell_own_warnings()
    _hide_late_writes()
    # A failed write of Orbax is raised and printed once; its log lines would repeat the error.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not is_terminal():  # their bars would fill a log with carriage returns
        for name in BARS:
            os.environ.setdefault(name, "1")
    # Only tokenizers and configurations of Transformers are used; neither needs PyTorch.
    for name, start in _IDLE.items():
        logging.getLogger(name).addFilter(partial(_begins_otherwise, start))


def _begins_otherwise(start: str, record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(start)


def _hide_late_writes() -> None:
    """Hide the tracebacks of TensorStore's threads that end after a write of Orbax has failed."""
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            show(unraisable)

    sys.unraisablehook = show_others


def _tell_own_warnings() -> None:
    """Print each warning of this package as one note, even if the warning is repeated."""
    show, said = warnings.showwarning, set[str]()

    def show_once(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if _OWN not in Path(filename).parts:
            show(message, category, filename, lineno, file, line)
        elif str(message) not in said:
            said.add(str(message))
            say(f"note: {message}")

    warnings.showwarning = show_once

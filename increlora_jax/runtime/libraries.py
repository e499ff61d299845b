"""Messages of libraries that no user of the commands can act on."""

import logging
import os
import warnings
from functools import partial
from pathlib import Path
from typing import TextIO

from increlora_jax.runtime.console import is_terminal, say

BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
"""Environment variables that the libraries read when they are imported; a user's own stand."""


_IDLE = {
    "transformers": "PyTorch was not found",
    # Ids of tokens outside the vocabulary, which only its own generation would use.
    "transformers.configuration_utils": "Model config: ",
}
"""How messages begin that nobody needs, by logger; a filter does not reach loggers below."""

_OWN = "increlora_jax"


def quiet_libraries() -> None:
    """Keep such messages from standard error, and say warnings of our own once, as notes.

    Every other warning passes.
    """
    _tell_own_warnings()
    # What Orbax logs of a failed write is raised, and said once.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not is_terminal():  # their bars would fill a log with carriage returns
        for name in BARS:
            os.environ.setdefault(name, "1")
    # Tokenizers and configurations need no PyTorch, and nothing else of Transformers is used.
    for name, start in _IDLE.items():
        logging.getLogger(name).addFilter(partial(_begins_otherwise, start))


def _begins_otherwise(start: str, record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(start)


def _tell_own_warnings() -> None:
    """Show each warning of this package as one note, however often it is given."""
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

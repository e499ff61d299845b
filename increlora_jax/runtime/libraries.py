"""Messages of libraries that no user of the commands can act on."""

import logging
import os

from increlora_jax.runtime.console import is_terminal

BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
"""Environment variables that the libraries read when they are imported; a user's own stand."""


def quiet_libraries() -> None:
    """Keep such messages from standard error; every other warning passes."""
    # What Orbax logs of a failed write is raised, and said once.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not is_terminal():  # their bars would fill a log with carriage returns
        for name in BARS:
            os.environ.setdefault(name, "1")
    # Tokenizers and configurations need no PyTorch, and nothing else of Transformers is used.
    logging.getLogger("transformers").addFilter(_is_not_of_pytorch)


def _is_not_of_pytorch(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("PyTorch was not found")

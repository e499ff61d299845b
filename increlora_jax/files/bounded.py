"""Files read into memory: plain ones, up to a size."""

import os
import stat
from io import BufferedReader
from pathlib import Path

from increlora_jax.errors import InputError


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a file of at most `max_bytes`.

    Raises:
        InputError: it is larger, no plain file, or cannot be read.
    """
    try:
        with open_plain(path) as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise InputError(f"{path} has more than the {max_bytes} bytes that such a file may have")
    return content


def open_plain(path: Path) -> BufferedReader:
    """Open for reading what is a file and no device or pipe, which might never end.

    Raises:
        OSError: it is none, or cannot be opened.
    """
    # A pipe that nobody writes to would keep an ordinary open waiting.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, "not a plain file", str(path))
    return file

"""Plain files read into memory, up to a size limit."""

import os
import stat
from io import BufferedReader
from pathlib import Path

from increlora_jax.errors import InputError


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a file of at most `max_bytes`.

    Raises:
        InputError: If the file is larger, is no plain file, or cannot be read.
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
    """Open a plain file for reading; refuse devices and pipes, whose reads might never end.

    Raises:
        OSError: If the path is no plain file or cannot be opened.
    """
    # O_NONBLOCK: opening a pipe without a writer would block.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, "not a plain file", str(path))
    return file

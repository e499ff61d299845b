r"""Lines of a text file: opened, unpacked, decoded and counted.

Lines end only at "\n"; the readers drop a "\r" before it. Unicode's other line breaks do not count,
so line numbers equal those of text editors. Bytes that are not UTF-8 are errors.
"""

import codecs
import gzip
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

from increlora_jax.errors import InputError

PACKED = ".gz"
_KINDS = {
    stat.S_ISDIR: "directory",
    stat.S_ISFIFO: "FIFO",
    stat.S_ISSOCK: "socket",
    stat.S_ISCHR: "device",
    stat.S_ISBLK: "device",
}
_SIGNATURES = {
    b"\x1f\x8b": "gzip. End its name in .gz",
    b"PK\x03\x04": "a zip archive or a workbook. Unpack it, or save it as CSV in UTF-8",
    b"PAR1": "Parquet. End its name in .parquet",
    b"\xd0\xcf\x11\xe0": "an old workbook. Save it as CSV in UTF-8",
}
"""Kinds of files by their first bytes, with the remedy."""


class Lines:
    """Lines of a file, which may be packed by gzip.

    Args:
        path: The file.
        stream: A stream of bytes to read instead; `path` is then its name in messages.

    Attributes:
        path: The file.
        count: The number of lines read so far.
    """

    def __init__(self, path: Path, stream: BinaryIO | None = None) -> None:
        self.path = path
        self.count = 0
        self._stream = stream

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Yield (line number from 1, text with its line break).

        Raises:
            InputError: If the file cannot be read. The message gives the file, and the line if
                known.
        """
        self.count = 0
        try:
            with self._open() as file:
                for raw in file:
                    self.count += 1
                    yield self.count, _decode_line(self.path, self.count, raw)
        except (OSError, EOFError, zlib.error) as error:
            raise describe_unreadable(self.path, error) from error

    def _open(self) -> AbstractContextManager[Iterable[bytes]]:
        if self._stream:
            return nullcontext(self._stream)
        check_regular(self.path)
        is_packed = self.path.name.lower().endswith(PACKED)
        return gzip.open(self.path, "rb") if is_packed else self.path.open("rb")


def check_regular(path: Path) -> None:
    """Check that a path is a regular file: reading a FIFO may never end.

    Raises:
        InputError: If it is not. The message has the path and its kind.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise describe_unreadable(path, error) from error
    for is_kind, kind in _KINDS.items():
        if is_kind(mode):
            raise InputError(f"{path}: cannot be read (Is a {kind}). Give a regular file")


def describe_unreadable(path: Path, error: Exception) -> InputError:
    """Return an error about a file that cannot be read or unpacked."""
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{path}: cannot be read ({reason}). Give a readable file")


def _decode_line(path: Path, line: int, raw: bytes) -> str:
    if line == 1:
        for signature, kind in _SIGNATURES.items():
            if raw.startswith(signature):
                raise InputError(f"{path}: no text, but {kind}")
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}:{line}: byte {error.start + 1} of this line (0x{raw[error.start]:02x}) is not "
            "UTF-8. Save the file as UTF-8, for example with iconv -t UTF-8"
        ) from error
    if "\0" in text:
        raise InputError(
            f"{path}:{line}: byte {raw.index(0) + 1} of this line is a NUL, which no text holds; "
            "the file is damaged or UTF-16: save it as UTF-8"
        )
    return text

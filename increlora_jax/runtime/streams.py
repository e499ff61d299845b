"""Standard output and standard error: all writes to them are here.

A closed pipe, a closed stream or a full disk never ends a run. Progress and notes are then dropped
silently. A result that cannot be written is an error, unless its reader has closed the pipe.
"""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from increlora_jax.errors import WriteError


class Lasting:
    """A text stream whose writes never raise an OSError; otherwise it acts as the inner stream.

    After the first error all output goes to the null device, also that of libraries.
    """

    def __init__(self, inner: TextIO):
        self._inner = inner
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write text and return its length, even if the write failed."""
        try:
            self._inner.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._inner.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _give_up(self, error: OSError) -> None:
        self.error = self.error or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError):  # a stream without a file has no number
            os.dup2(nowhere, self._inner.fileno())
        os.close(nowhere)


@contextmanager
def lasting() -> Iterator[None]:
    """Keep standard output and error usable while this lasts, even if their readers close them."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_make_lasting, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def open_closed() -> None:
    """Connect closed standard streams to the null device.

    Otherwise the next opened file would get the stream's number, and the prints of libraries too.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # os.open returns the lowest free number, which is this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


_PLAIN = {
    "…": "...", "·": "*", "×": "x", "−": "-", "±": "+-", "→": "->", "≥": ">=", "≤": "<=",
    "½": "1/2", "√": "sqrt", "α": "alpha", "β": "beta", "γ": "gamma", "ε": "epsilon",
    "λ": "lambda", "Δ": "delta",
}  # fmt: skip
"""Signs of this project's messages, and their spelling for encodings without them."""

_SPELT = "increlora-plain"
"""The name of the error handler that spells these signs."""


def accept_any_text() -> None:
    """Make standard output and error spell or escape letters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SPELT)


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError):
        spelt = _PLAIN.get(error.object[error.start])
        if spelt:
            return spelt, error.start + 1
        error.end = error.start + 1  # one letter at a time: the next may have a spelling
    return codecs.backslashreplace_errors(error)


codecs.register_error(_SPELT, _spell)


def tell(message: str) -> None:
    """Write a line to standard error; failures are ignored."""
    with lasting():
        sys.stderr.write(message + "\n")
        sys.stderr.flush()


def write_result(line: str) -> bool:
    """Write a line to standard output; return whether somebody still reads it.

    If the reader has closed the pipe, nothing is raised.

    Raises:
        WriteError: If the line could not be written for another reason.
    """
    with lasting():
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        # As on standard error, spell letters that the stream's encoding lacks.
        sys.stdout.write(line.encode(encoding, _SPELT).decode(encoding) + "\n")
        sys.stdout.flush()
        error = getattr(sys.stdout, "error", None)
    if error is not None and not isinstance(error, BrokenPipeError):
        raise WriteError(f"standard output cannot be written: {error}")
    return error is None


def _make_lasting(stream: Any) -> Any:
    return stream if isinstance(stream, Lasting) else Lasting(stream or io.StringIO())

"""Standard output and standard error: the one home of every write to them.

A reader that has gone, a closed stream and a full disk never end a run. Progress and notes are lost
silently then; a result that could not be written is an error, unless nobody wants to read it.
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
    """A text stream whose writes never raise an OSError; all else is the stream's own.

    After the first error everything goes to the null device, what libraries write themselves too.
    """

    def __init__(self, inner: TextIO):
        self._inner = inner
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write text; return its length whether it arrived or not."""
        try:
            self._inner.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush what was written."""
        try:
            self._inner.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _give_up(self, error: OSError) -> None:
        self.error = self.error or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError):  # a stream of nobody's file has no number
            os.dup2(nowhere, self._inner.fileno())
        os.close(nowhere)


@contextmanager
def lasting() -> Iterator[None]:
    """Let standard output and error outlive their readers while this lasts."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_make_lasting, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def open_closed() -> None:
    """Connect standard streams that are closed to the null device.

    Otherwise the next file that is opened gets their number, and with it what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


_PLAIN = {
    "…": "...", "·": "*", "×": "x", "−": "-", "±": "+-", "→": "->", "≥": ">=", "≤": "<=",
    "½": "1/2", "√": "sqrt", "α": "alpha", "β": "beta", "γ": "gamma", "ε": "epsilon",
    "λ": "lambda", "Δ": "delta",
}  # fmt: skip
"""Signs that this project writes, as a terminal of other letters shows them."""

_SPELT = "increlora-plain"
"""The name of the error handler that shows them so."""


def accept_any_text() -> None:
    """Let standard output and error take letters that their encoding lacks: spelt, or escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SPELT)


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError):
        spelt = _PLAIN.get(error.object[error.start])
        if spelt:
            return spelt, error.start + 1
        error.end = error.start + 1  # the next letter may have a spelling
    return codecs.backslashreplace_errors(error)


codecs.register_error(_SPELT, _spell)


def tell(message: str) -> None:
    """Write a line to standard error; a stream that does not take it is no error."""
    with lasting():
        sys.stderr.write(message + "\n")
        sys.stderr.flush()


def write_result(line: str) -> None:
    """Write a line to standard output.

    A reader that has closed its end wants no more, which is no error.

    Raises:
        WriteError: the line could not be written for any other reason.
    """
    with lasting():
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        # As standard error does: a letter that the stream lacks is no error.
        sys.stdout.write(line.encode(encoding, _SPELT).decode(encoding) + "\n")
        sys.stdout.flush()
        error = getattr(sys.stdout, "error", None)
    if error is not None and not isinstance(error, BrokenPipeError):
        raise WriteError(f"standard output cannot be written: {error}")


def _make_lasting(stream: Any) -> Any:
    return stream if isinstance(stream, Lasting) else Lasting(stream or io.StringIO())

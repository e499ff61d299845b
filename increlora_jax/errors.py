"""The errors that end a command in one line, each with the exit status that belongs to it."""

from collections.abc import Iterable


class InputError(ValueError):
    """Input that cannot be used; the message names it, where it stands, and the remedy.

    The commands print the message without a traceback and leave with exit status 2.
    """

    exit_status = 2


class NonFiniteError(ArithmeticError):
    """Too many steps in a row had a NaN or infinite loss or gradient; none changed anything."""

    exit_status = 3


class WriteError(OSError):
    """A file of a run cannot be written; the message names it, and what is still intact.

    The commands print the message without a traceback and leave with exit status 4.
    """

    exit_status = 4


class OutOfMemoryError(RuntimeError):
    """Host or device lack memory; the message says what was asked for and which flags lower it."""

    exit_status = 5


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean NAME?" for the nearest of the known words, or nothing."""
    from difflib import get_close_matches  # signals are not heeded yet: each import counts

    found = get_close_matches(word.lower(), list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""

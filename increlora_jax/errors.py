"""Errors that end a command in one line, each with its own exit status."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_FLAG = re.compile(r"--(no-)?([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")


_has_flags = False


@contextmanager
def naming_flags() -> Iterator[None]:
    """Let messages name a setting as a command does, `--top-h`; elsewhere they name `top_h`."""
    global _has_flags  # noqa: PLW0603  # messages are made anywhere, in any thread
    before, _has_flags = _has_flags, True
    try:
        yield
    finally:
        _has_flags = before


def as_arguments(message: str) -> str:
    """Return a message that names arguments, `top_h` and `growth=False`, in the place of flags."""
    message = message.replace("--max-steps (or --num-train-epochs)", "steps")

    def name(flag: re.Match[str]) -> str:
        return flag[2].replace("-", "_") + ("=False" if flag[1] else "")

    return _FLAG.sub(name, message)


class InputError(ValueError):
    """Error in the user's input; the message says where, what is wrong and what to do.

    The commands print the message without a traceback and exit with status 2. Elsewhere it names
    arguments in the place of flags.

    Args:
        message: with flags.

    Example:
        >>> import increlora_jax as il
        >>> try:
        ...     il.GrowthConfig(target_rank=-1)
        ... except il.InputError as error:
        ...     print(error)
        target_rank -1 must be positive
    """

    exit_status = 2

    def __init__(self, message: str):
        super().__init__(message if _has_flags else as_arguments(message))


class NonFiniteError(ArithmeticError):
    """Error of too many steps in a row that were not finite; none of them changed the state."""

    exit_status = 3


class WriteError(OSError):
    """Error in writing a file of a run; the message names the file, and the files that are intact.

    The commands print the message without a traceback and exit with status 4.
    """

    exit_status = 4


class OutOfMemoryError(RuntimeError):
    """Lack of memory; the message has the size asked for, and the flags that lower it."""

    exit_status = 5


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean NAME?" for the nearest known word, or an empty string."""
    from difflib import get_close_matches  # imported late: signals wait for imports

    found = get_close_matches(word.lower(), list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""

"""Lack of host or device memory, as Python, NumPy and JAX report it."""

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from increlora_jax.errors import OutOfMemoryError

_OF_JAX = ("JaxRuntimeError", "XlaRuntimeError")
_WORDS = re.compile(r"RESOURCE_EXHAUSTED|out[ _]of[ _]memory|failed to allocate", re.IGNORECASE)
_WORDS_OF_THE_LOADER = re.compile("failed to map segment|cannot allocate memory", re.IGNORECASE)
_BYTES = re.compile(r"\b(\d{6,}) ?(?:bytes|B\b)")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is lacking."""
    if isinstance(error, MemoryError | OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError):  # of a library that is loaded lazily
        return bool(_WORDS_OF_THE_LOADER.search(str(error)))
    return type(error).__name__ in _OF_JAX and bool(_WORDS.search(str(error)))


def describe_shortage(error: BaseException) -> str:
    """Return a short text with the size of the failed allocation."""
    if isinstance(error, OutOfMemoryError):
        return str(error)
    first = next(iter(str(error).strip().splitlines()), "")
    asked = first.removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
    asked = _BYTES.sub(lambda found: f"{int(found[1]) / 2**30:.2f} GiB", asked)
    return f"out of memory ({asked})" if asked else "out of memory"


@contextmanager
def explain_shortage(advise: Callable[[], str]) -> Iterator[None]:
    """Turn an error of lacking memory into an `OutOfMemoryError` with advice.

    Raises:
        OutOfMemoryError: If memory is lacking; the message has the size asked for, and the advice.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"{describe_shortage(error)}: {advise()}") from error

"""Messages and progress on standard error: bars on a terminal, lines in a log."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from statistics import fmean
from typing import Any, TextIO

from tqdm import tqdm

PATIENCE = 1.0
"""Seconds of silence before long work is announced."""

PERIOD = 20.0
"""Seconds between two lines of progress in a log."""

USUAL_SIZE: dict[str, Any] = {"ncols": 80, "nrows": 24}


def is_first() -> bool:
    """Return whether this process prints and writes for all; a single process uses no device."""
    import jax

    return not jax.distributed.is_initialized() or jax.process_index() == 0


def is_terminal() -> bool:
    """Return whether standard error is a terminal, on which a bar can overwrite itself."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def say(message: str) -> None:
    """Write a line to standard error, above the bars, from the first process only."""
    if is_first():
        tqdm.write(message, file=sys.stderr)


def prints_apart() -> redirect_stdout[TextIO]:
    """Redirect all prints to standard error meanwhile; standard output keeps the results alone."""
    return redirect_stdout(sys.stderr)


@contextmanager
def announced(work: str) -> Iterator[None]:
    """Announce work after a second and print its duration at the end; short work prints nothing."""
    begun, is_said = time.monotonic(), threading.Event()

    def begin() -> None:
        say(f"{work} …")
        is_said.set()

    timer = threading.Timer(PATIENCE, begin)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
    if is_said.is_set():
        say(f"{work} took {time.monotonic() - begun:.1f} s")


@contextmanager
def counted(work: str, total: int, of_what: str) -> Iterator[Callable[[int], None]]:
    """Show the progress of long work, as in "tokenizing 512 of 67349 train examples".

    Args:
        work: The verb, such as "tokenizing".
        total: The number of items.
        of_what: The noun, such as "train examples".

    Yields:
        A function to call with the number of further items done.
    """
    pace, done = Pace(delay=PATIENCE), 0
    with _make_bar(total, desc=work, unit=of_what, leave=False, delay=PATIENCE) as bar:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.update(count)
            if not is_terminal() and pace.is_due():
                say(f"{work} {done} of {total} {of_what}")

        yield advance


class Pace:
    """A clock for the lines of a log; the first is due after `delay` seconds."""

    def __init__(self, delay: float = 0.0):
        self._next = time.monotonic() + delay

    def is_due(self) -> bool:
        """Return whether a line is due now; if so, the next is due `PERIOD` seconds later."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + PERIOD
        return True


class Bar:
    """The progress of training from `step` on, as a bar or as lines; a context manager."""

    def __init__(self, total_steps: int, *, step: int = 0, is_silent: bool = False):
        self._is_silent = is_silent
        self._total, self._done = total_steps, step
        self._pace = Pace()
        self._first: tuple[int, float] | None = None
        self._bar = _make_bar(total_steps, is_silent=is_silent, initial=step, unit="step")

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self, losses: list[float], ranks: list[int], tokens_per_second: float) -> None:
        """Show a step: the mean loss and the range of ranks over the runs that train together.

        Args:
            losses: The loss of each run.
            ranks: The total rank of each run.
            tokens_per_second: Tokens without padding, summed over the runs; 0 if not known yet.
        """
        low, high = min(ranks), max(ranks)
        loss, rank = f"{fmean(losses):.4f}", f"{low}" if low == high else f"{low}-{high}"
        self._done += 1
        self._bar.update(1)
        self._bar.set_postfix(
            loss=loss, rank=rank, tokens=f"{tokens_per_second:.0f}/s", refresh=False
        )
        left = self._time_left()
        if not is_terminal() and (self._pace.is_due() or self._done == self._total):
            speed = f", {tokens_per_second:.0f} tokens/s" if tokens_per_second else ""
            self.say(f"step {self._done} of {self._total}: loss {loss}, rank {rank}{speed}{left}")

    def say(self, message: str) -> None:
        """Write a line without disturbing the bar."""
        if not self._is_silent:
            say(message)

    def _time_left(self) -> str:
        """Estimate the time left from the steps after the first, which includes compilation."""
        now = time.monotonic()
        if self._first is None:
            self._first = self._done, now
            return ""
        done, at = self._first
        seconds = (now - at) / (self._done - done) * (self._total - self._done)
        return f", {tqdm.format_interval(seconds)} left"


def _make_bar(total: int, *, is_silent: bool = False, **options: Any) -> "tqdm[None]":
    """Return a bar; in a log, and in all processes but the first, the bar shows nothing."""
    is_off = is_silent or not is_terminal() or not is_first()
    size = {"dynamic_ncols": True} if _has_size() else USUAL_SIZE
    return tqdm(total=total, file=sys.stderr, disable=is_off, **size, **options)


def _has_size() -> bool:
    """Return whether the terminal knows its size; with a size of 0, tqdm would show nothing."""
    try:
        return min(os.get_terminal_size(sys.stderr.fileno())) > 0
    except (OSError, ValueError):
        return False

"""Wall time of a run, and how much of it went into training steps."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Starts when made; all times in seconds."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._elsewhere = 0.0
        self.to_first_step = math.nan

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self._start

    @property
    def training_seconds(self) -> float:
        """Time since the start that was not paused."""
        return self.seconds - self._elsewhere

    def mark_first_step(self) -> None:
        """Note that the first training step is done, and begin to count training time."""
        self.to_first_step = self.seconds
        self._elsewhere = self.seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count what happens inside as not training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._elsewhere += time.perf_counter() - began

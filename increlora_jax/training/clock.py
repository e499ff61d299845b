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
        self._earlier = self._earlier_training = 0.0
        self.to_first_step = math.nan

    @property
    def seconds(self) -> float:
        """Time since the start, and of the processes that went before."""
        return self._earlier + time.perf_counter() - self._start

    @property
    def training_seconds(self) -> float:
        """Time spent in training steps, from the second of each process on."""
        here = time.perf_counter() - self._start - self._elsewhere
        return self._earlier_training + (0.0 if math.isnan(self.to_first_step) else here)

    def add_earlier(self, seconds: float, training_seconds: float) -> None:
        """Count what the processes before this one have spent on the run."""
        self._earlier, self._earlier_training = seconds, training_seconds

    def mark_first_step(self) -> None:
        """Note that the first training step is done, and begin to count training time."""
        self.to_first_step = self._elsewhere = time.perf_counter() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count what happens inside as not training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._elsewhere += time.perf_counter() - began

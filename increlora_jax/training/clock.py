"""Wall time of a run, and how much of it went into training steps."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Starts when made; all times in seconds.

    Args:
        imports: the time that the command's imports took before.
    """

    def __init__(self, imports: float = 0.0) -> None:
        self._start = time.perf_counter()
        self._elsewhere = 0.0
        self._phases = {"imports": imports}
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

    @property
    def phases(self) -> dict[str, float]:
        """Time by phase in this process; the first training step is part of none."""
        return self._phases | {"training": self.training_seconds - self._earlier_training}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as a phase, and not as training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self._elsewhere += spent
            self._phases[name] = self._phases.get(name, 0.0) + spent

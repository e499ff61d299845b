"""Time of a training step of a real task, with padded and packed batches, turn by turn.

Flags are those of the training command. Steps are timed with their batch and its transfer.
"""

import argparse
import sys
import time
from statistics import mean
from typing import Any

import jax
import numpy as np

from increlora_jax.run.build import plan_run, prepare_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.runtime.compilation_cache import use_compilation_cache
from increlora_jax.runtime.memory import dispatch_synchronously, keep_freed_memory
from increlora_jax.tasks.classification import count_tokens
from increlora_jax.training.loop import jit_step


class Timed:
    """A run that repeats its first batches; the first pass over them compiles."""

    def __init__(self, words: list[str]):
        self._run = prepare_run(plan_run(parse_run(words)))
        self._state = self._run.first_state()
        self._step = jit_step(self._run.trainer, self._run.plan.layout, self._state, count_tokens)
        self.seconds: list[float] = []
        self.shapes: set[tuple[int, ...]] = set()
        self._places = self._tokens = 0

    def step(self, at: int) -> None:
        """Run a step on a batch, and record its time."""
        began = time.perf_counter()
        batch = self._run.plan.layout.batch(self._run.batch_at(at))
        self._state, info = self._step(self._state, self._run.parts.base, batch, is_scored=False)
        told: Any = jax.block_until_ready(info)
        self.seconds.append(time.perf_counter() - began)
        self.shapes.add(batch["input_ids"].shape)
        self._places += int(told["places"])
        self._tokens += int(told["tokens"])

    def describe(self, last: int) -> str:
        """Return the mean of the last steps, and the padding."""
        return (
            f"{1000 * mean(self.seconds[-last:]):.0f} ms a step, padding "
            f"{1 - self._tokens / self._places:.0%}, {len(self.shapes)} shapes"
        )


def main() -> None:
    """Print milliseconds a step of both, the share of padding and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=60, help="of the run, from its first on")
    options, words = parser.parse_known_args()
    use_compilation_cache(None)
    keep_freed_memory()
    dispatch_synchronously()
    padded, packed = Timed([*words, "--no-packing"]), Timed([*words, "--packing"])
    for _ in range(2):
        for at in range(options.batches):
            padded.step(at)
            packed.step(at)
    last = [np.array(timed.seconds[-options.batches :]) for timed in (padded, packed)]
    sys.stdout.write(
        f"padded: {padded.describe(options.batches)}\npacked: {packed.describe(options.batches)}\n"
        f"packed ÷ padded: {last[1].mean() / last[0].mean():.2f}\n"
    )


if __name__ == "__main__":
    main()

"""Cost of a step of several seeds that train together, against a step of a single one."""

import argparse
import sys
import time
from statistics import median

import jax

from increlora_jax.config import RunConfig
from increlora_jax.run.build import plan_run, prepare_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.run.sweep import members_of
from increlora_jax.runtime.compilation_cache import use_compilation_cache
from increlora_jax.tasks.classification import count_tokens
from increlora_jax.training.loop import jit_step
from increlora_jax.training.together import members


class Timed:
    """A compiled step whose blocks are timed."""

    def __init__(self, config: RunConfig, *, is_scored: bool):
        run = prepare_run(plan_run(config))
        self._state, self._base = run.first_state(), run.parts.base
        batch = run.plan.layout.batch(run.batch_at(0), axis=len(members(self._state)))
        self._batch = jax.device_put(batch)  # once, not with every step
        self.shape = self._batch["input_ids"].shape
        jitted = jit_step(run.trainer, run.plan.layout, self._state, count_tokens)
        lowered = jitted.lower(self._state, self._base, self._batch, is_scored=is_scored)
        self._program = lowered.compile()
        self.seconds: list[float] = []

    def block(self, steps: int) -> None:
        """Run the given number of steps, and record the seconds of one."""
        began = time.perf_counter()
        for _ in range(steps):
            self._state, info = self._program(self._state, self._base, self._batch)
        jax.block_until_ready(info)
        self.seconds.append((time.perf_counter() - began) / steps)


def main() -> None:
    """Alternate blocks of one seed and of all; print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=9, help="of each kind")
    parser.add_argument("--steps", type=int, default=5, help="of a block")
    arguments, words = parser.parse_known_args()
    config = parse_run([*words, "--pad-to-max-length"])
    members = members_of(config)
    use_compilation_cache(None)
    for is_scored in (False, True):
        one, many = (Timed(c, is_scored=is_scored) for c in (members[0].config, config))
        for _ in range(arguments.blocks + 1):
            one.block(arguments.steps)
            many.block(arguments.steps)
        alone, together = (1000 * median(timed.seconds[1:]) for timed in (one, many))
        sys.stdout.write(
            f"{'scored' if is_scored else 'unscored'} steps of {many.shape} tokens: one run "
            f"{alone:.1f} ms, {len(members)} together {together:.1f} ms, ratio "
            f"{together / alone:.2f} ({together / alone / len(members):.2f} a run)\n"
        )


if __name__ == "__main__":
    main()

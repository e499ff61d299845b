"""Cost of a checkpoint for the training loop, and of resuming for the start."""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import jax

from increlora_jax.config import TrainingConfig
from increlora_jax.run.build import plan_run, prepare_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.runtime.compilation_cache import use_compilation_cache
from increlora_jax.training.checkpoint import Checkpoints, Keep
from increlora_jax.training.progress import Progress

BLOCK = 20
"""Steps of a block; every other block saves once, at its start."""


def main() -> None:
    """Alternate blocks of steps with and without a save; print the cost of a save for 500 steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=8, help="of each kind")
    arguments, words = parser.parse_known_args()
    use_compilation_cache(None)
    plan = plan_run(parse_run(words))
    run = prepare_run(plan)
    step = jax.jit(run.trainer.step, static_argnames="is_scored", donate_argnames="state")
    state = run.first_state()
    batch = run.batch_at(0)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), Keep(2), plan.identity)

        def block(number: int, *, saves: bool) -> float:
            nonlocal state
            began = time.perf_counter()
            if saves:
                checkpoints.save(state, Progress(step=number))
            for _ in range(BLOCK):
                state, info = step(state, run.parts.base, batch, is_scored=True)
            jax.block_until_ready(info)
            checkpoints.wait()  # background work counts too
            return time.perf_counter() - began

        block(1, saves=True)  # compiles, and warms the writer
        plain, saving = [], []
        for number in range(2, 2 + arguments.blocks):
            plain.append(block(number, saves=False))
            saving.append(block(number, saves=True))
        began = time.perf_counter()
        newest, _ = checkpoints.newest()
        checkpoints.read(newest)
        jax.block_until_ready(checkpoints.restore(newest, state))
        resumed = time.perf_counter() - began
        began = time.perf_counter()
        plan_run(plan.config).identity  # noqa: B018  (what takes time is to make it)
        identified = time.perf_counter() - began
    interval = TrainingConfig().save_steps
    steps = median(plain) / BLOCK * interval
    cost = median(s - p for s, p in zip(saving, plain, strict=True))
    sys.stdout.write(
        f"a step {1000 * median(plain) / BLOCK:.1f} ms, a save {1000 * cost:.0f} ms more: "
        f"{100 * cost / steps:.2f} % at one in {interval} steps\n"
        f"resuming: {resumed:.2f} s; knowing model and data by their content: {identified:.2f} s\n"
    )


if __name__ == "__main__":
    main()

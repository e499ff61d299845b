"""Share of the host's Python in a training step: the demo's run, a tiny model."""

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from increlora_jax.run.build import Run, plan_run, prepare_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.runtime.compilation_cache import use_compilation_cache
from increlora_jax.runtime.console import Bar
from increlora_jax.runtime.preemption import Stop
from increlora_jax.training.checkpoint import Checkpoints, Keep
from increlora_jax.training.clock import Clock
from increlora_jax.training.journal import Journal
from increlora_jax.training.loop import Job, Loop
from increlora_jax.training.progress import Progress
from increlora_jax.training.run_log import RunLog

STEPS = 752
"""Steps of the demo; they are scored up to step 220, and all is compiled soon after."""

SCORED, UNSCORED = range(32, 208), range(304, 736)


def main() -> None:
    """Print the main thread's processor milliseconds a step, or a profile of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", type=int, default=0, help="lines of cProfile's table")
    parser.add_argument("--steps-per-execution", type=int, default=1, choices=(1, 2, 4, 8, 16))
    options = parser.parse_args()
    lines, each = options.profile, options.steps_per_execution
    use_compilation_cache(None)
    flags = {"task": "demo", "max-steps": STEPS, "steps-per-execution": each}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    run = prepare_run(plan_run(parse_run(words)))
    profile = cProfile.Profile(time.thread_time) if lines else None
    with tempfile.TemporaryDirectory() as folder:
        host, wall = measure(run, Path(folder), profile)
    if profile:
        sys.stdout.write(f"{len(UNSCORED)} steps\n")
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(lines)
        return
    for name, steps in {"scored": SCORED, "unscored": UNSCORED}.items():
        calls = slice(steps.start, steps.stop + 1, each)
        low, middle, high = quantiles(_between(host[calls], each), n=4)
        sys.stdout.write(
            f"{name} steps: host {middle:.2f} ms ({low:.2f} to {high:.2f}), "
            f"wall {median(_between(wall[calls], each)):.2f} ms\n"
        )


def measure(
    run: Run, folder: Path, profile: cProfile.Profile | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the seconds at the start of each step: of the main thread's processor, and wall.

    XLA computes on its own threads, and waiting costs no processor time. So the main thread's time
    is the host's share: building the batch, dispatch, reading numbers late, writing the log.
    """
    stamps: list[tuple[float, float]] = []

    def batch_at(step: int) -> dict[str, Any]:
        stamps.append((time.thread_time(), time.perf_counter()))
        if profile and step == UNSCORED.start:
            profile.enable()
        if profile and step == UNSCORED.stop:
            profile.disable()
        return run.batch_at(step)

    schedule = run.plan.timetable._replace(eval_steps=STEPS, save_steps=10 * STEPS)
    checkpoints = Checkpoints(folder / "checkpoints", Keep(1), {})
    with RunLog(folder) as log, Bar(STEPS) as bar, checkpoints:
        journal = Journal(Progress(), log, schedule, run.trainer.method, bar.say)
        job = Job(
            *(run.trainer, run.plan.layout, run.evaluator, schedule, checkpoints, batch_at),
            *(lambda *_: None, [journal], bar, Clock(), Stop()),
        )
        Loop(job, run.first_state(), run.parts.base).run()
    host, wall = zip(*stamps, strict=True)
    return host, wall


def _between(stamps: tuple[float, ...], steps: int) -> list[float]:
    """Return the milliseconds a step between two stamps `steps` apart."""
    return [1e3 * (after - before) / steps for before, after in pairwise(stamps)]


if __name__ == "__main__":
    main()

"""Time of a training step, here and in other packages, on the same work in one interleaved run."""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import jax
from contenders import CONTENDERS, JAX_PEAK, LORA, RUN, SCORING, TORCH_PEAK
from schedule import compress, scored_share
from tables import render, write_into
from work import SHAPES, Work
from worker import FailedError, Worker

from increlora_jax.models.fused_attention import AttentionImplementation
from increlora_jax.models.repeated_layer import Remat

HERE = Path(__file__).parent
README, RESULTS = HERE / "README.md", HERE / "results"


def main() -> None:
    """Measure and print; with --name also keep the numbers and renew the README's tables."""
    jax.config.update("jax_platforms", "cpu")  # the workers use the accelerator
    options = parse()
    if not options.render:
        work = work_of(options)
        found = measure(work, options)
        sys.stdout.write(render(found))
        if options.name:
            RESULTS.mkdir(exist_ok=True)
            text = json.dumps(found, indent=1) + "\n"
            (RESULTS / f"{options.name}.json").write_text(text, encoding="utf-8")
    if options.name or options.render:
        renew_readme()


def renew_readme() -> None:
    """Write the tables of all kept results into the README, between their marks."""
    text = README.read_text(encoding="utf-8")
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        text = write_into(text, path.stem, render(found))
    README.write_text(text, encoding="utf-8")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_work_flags(parser)
    parser.add_argument("--repeats", type=int, default=15, help="turns")
    parser.add_argument("--steps", type=int, default=1, help="steps of a turn")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="contenders; default: all")
    parser.add_argument("--no-cold", action="store_true", help="no starts with an empty cache")
    parser.add_argument("--no-run", action="store_true", help="not the whole run in few steps")
    parser.add_argument("--name", help="keep the numbers as results/NAME.json, and in the README")
    parser.add_argument("--render", action="store_true", help="only renew the README's tables")
    return parser.parse_args(words)


def add_work_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that describe the work."""
    parser.add_argument("--model", default="minilm-l6", help=f"{', '.join(SHAPES)}, or a folder")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rank", type=int, default=8, help="final rank of a module in the mean")
    parser.add_argument("--top-h", type=int, help="modules of a round; default: the recipe's")
    parser.add_argument("--lora-dropout", type=float, default=0.0, help="of all contenders")
    parser.add_argument(
        "--remat", choices=get_args(Remat), default="none", help="in PyTorch: whole layers, if any"
    )
    parser.add_argument(
        "--attn-implementation", choices=get_args(AttentionImplementation), default="xla",
        help="of our side",
    )  # fmt: skip


def work_of(options: argparse.Namespace) -> Work:
    """Return the work that the flags describe."""
    names = {field.name for field in fields(Work)} - {"name"}
    return Work(options.model, **{name: getattr(options, name) for name in names})


def measure(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all numbers of the tables; times in seconds, memory in bytes."""
    chosen = [name for name in CONTENDERS if name in (options.only or CONTENDERS)]
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        rows, workers = _start(work, chosen, Path(scratch), stack, is_cold=not options.no_cold)
        for name, turns in take_turns(workers, options.repeats, options.steps).items():
            rows[name]["turns"] = [turn["seconds"] for turn in turns]
            rows[name]["last"] = turns[-1]
        run = None
        if LORA in workers and not options.no_run:
            run = _whole_run(work, workers[LORA], Path(scratch))
    for name in rows.keys() & CONTENDERS.keys():
        rows[name]["flops"] = work.flops(is_scored=name in SCORING)
    windows = {"default": None, "every step": work.steps}
    return {
        "work": asdict(work) | {"name": Path(work.name).name, "modules": len(work.sizes)},
        "machine": _machine(rows),
        "turns": options.repeats,
        "steps_a_turn": options.steps,
        "plan": work.plan(work.growth(), work.steps).describe(),
        "scored_share": {k: scored_share(work, v) for k, v in windows.items()},
        "whole_run": run,
        "rows": rows,
    }


def _start(
    work: Work, names: list[str], scratch: Path, stack: ExitStack, *, is_cold: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, Worker]]:
    """Start each contender with an empty cache and then with a filled one; the latter stay."""
    rows: dict[str, dict[str, Any]] = {}
    workers: dict[str, Worker] = {}
    for index, name in enumerate([*names, JAX_PEAK, TORCH_PEAK]):
        cache = scratch / str(index)
        cache.mkdir()
        rows[name] = {}
        try:
            if is_cold and name in CONTENDERS:
                with Worker(name, work, cache) as cold:
                    rows[name]["cold"] = cold.start
            workers[name] = stack.enter_context(Worker(name, work, cache))
            rows[name]["cached"] = workers[name].start
        except FailedError as error:
            rows[name]["failure"] = str(error)
    return rows, workers


def take_turns(
    workers: dict[str, Worker], repeats: int, steps: int, *, has_practice: bool = True
) -> dict[str, list[dict[str, Any]]]:
    """Return each contender's numbers of every turn; the order is reversed every other turn.

    Between turns, others have used the processor's caches. So a turn begins with a step that is not
    timed.

    Args:
        workers: The contenders' processes by name.
        repeats: Number of turns.
        steps: Steps of a turn.
        has_practice: False if each step has its place in a run; no untimed step is then made.
    """
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for repeat in range(repeats):
        for name in list(workers)[:: 1 if repeat % 2 else -1]:
            if has_practice:
                workers[name].run(1)
            told[name].append(workers[name].run(steps))
    return told


def _whole_run(work: Work, lora: Worker, scratch: Path) -> dict[str, list[float]]:
    """Run a whole run in few steps, step by step, with LoRA beside it.

    Raises:
        RuntimeError: If the run did not spend its budget as planned.
    """
    cache = scratch / "run"
    cache.mkdir()
    with Worker(RUN, work, cache) as worker:
        turns = compress(work)[1]
        told = take_turns({RUN: worker, LORA: lora}, turns, 1, has_practice=False)
    last = told[RUN][-1]
    if last["total_rank"] != last["rank_budget"]:
        raise RuntimeError(f"the run ended at {last['total_rank']} of {last['rank_budget']} ranks")
    return {name: [turn["seconds"] for turn in turns] for name, turns in told.items()}


def _machine(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    devices = {row["cached"]["device"] for row in rows.values() if "cached" in row}
    packages = ("jax", "jaxlib", "flax", "torch", "transformers", "peft")
    return {
        "device": " and ".join(sorted(devices)),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages if find_spec(name)},
    }


if __name__ == "__main__":
    main()

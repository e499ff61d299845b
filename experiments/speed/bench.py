"""How long a training step takes, here and in PEFT, on the same work in one interleaved run."""

import argparse
import gc
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from contenders import CONTENDERS
from work import SHAPES, Work

from increlora_jax.compilation_cache import use_compilation_cache


def main() -> None:
    """Print the table and write it beside its numbers; or, for one contender, its own figures."""
    options = _parse()
    work = Work(options.model, options.batch, options.length, options.dtype, options.rank)
    if options.alone:
        sys.stdout.write(json.dumps(measure_alone(options.alone, work, options.cache)) + "\n")
        return
    chosen = [name for name in CONTENDERS if name in (options.only or CONTENDERS)]
    times = measure_together(work, chosen, options.repeats, options.steps)
    rows = {name: _describe(work, name, times[name], times[chosen[0]]) for name in chosen}
    if not options.no_memory:
        rows = {name: row | _in_process_of_its_own(name) for name, row in rows.items()}
    sys.stdout.write(table(rows))
    if options.json:
        options.json.write_text(
            json.dumps({"work": vars(options), "rows": rows}, indent=1, default=str)
        )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm-l6", help=f"{', '.join(SHAPES)}, or a folder")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rank", type=int, default=8, help="final rank of a module")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=1, help="steps of a repeat")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="contenders; default: all")
    parser.add_argument("--no-memory", action="store_true", help="no process of its own for each")
    parser.add_argument("--json", type=Path, help="where the numbers go as well")
    parser.add_argument("--alone", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--cache", default="off", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_together(
    work: Work, names: list[str], repeats: int, steps: int
) -> dict[str, list[float]]:
    """Seconds a step, contenders taking turns; the first turn, which compiles, is left out."""
    runs = {}
    for name in names:
        runs[name] = CONTENDERS[name](work)
        runs[name](2)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names[:: 1 if repeat % 2 else -1]:
            began = time.perf_counter()
            runs[name](steps)
            seconds[name].append((time.perf_counter() - began) / steps)
    return seconds


def measure_alone(name: str, work: Work, cache: str) -> dict[str, float]:
    """Time to the first step, and the peak of memory after five, of the process it runs in."""
    use_compilation_cache(cache)
    before = _peak_memory()
    began = time.perf_counter()
    run = CONTENDERS[name](work)
    run(1)
    first = time.perf_counter() - began
    run(4)
    gc.collect()
    return {"first step s": first, "peak GiB": _peak_memory(), "of it imports GiB": before}


def _peak_memory() -> float:
    import jax

    statistics = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"] / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _in_process_of_its_own(name: str) -> dict[str, float]:
    command = [sys.executable, *sys.argv, "--alone", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _describe(work: Work, name: str, seconds: list[float], first: list[float]) -> dict[str, Any]:
    is_scored = "unscored" not in name and "scored" in name
    middle, ratios = median(seconds), [s / f for s, f in zip(seconds, first, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return {
        "ms a step": 1e3 * middle,
        "tokens/s": work.tokens / middle,
        "GFLOP/s": work.flops(is_scored=is_scored) / middle / 1e9,
        "ratio": median(ratios),
        "ratio, quartiles": (low, high),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """A Markdown table of rows that share their keys."""
    keys = list(next(iter(rows.values())))
    lines = [f"| contender | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(_show(row[key]) for key in keys)} |")
    return "\n".join(lines) + "\n"


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return " to ".join(map(_show, value))
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    main()

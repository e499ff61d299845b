"""Effect of options that are not exact on the growth and the metric of a real task."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from increlora_jax.run.command_line import parse_run
from increlora_jax.train import train

STEPS = 700
FLAGS = {
    "task": "sst2",
    "max-steps": STEPS,
    "eval-steps": STEPS,
    "max-seq-length": 64,
    "target-rank": 2,
    "top-h": 12,
    "init-warmup": 0,
    "incre-interval": 200,
    "warmup-steps": 60,
    "learning-rate": 1e-3,
    "modules-to-save": "classifier",
}
"""Settings of the study: MiniLM's 36 modules get 36 slots in rounds 200, 400 and 600."""

EXACT = ["--score-window", str(STEPS)]
PACKED = [*EXACT, "--packing"]  # fewer tokens, and fewer shapes to compile
VARIANTS = {
    "scored at every step": PACKED,
    "no packing": [*EXACT, "--pad-to-max-length"],
    "another seed": [*PACKED, "--seed", "42"],
    "the default window, 169": ["--packing"],
    "window of 64": ["--packing", "--score-window", "64"],
    "window of 16": ["--packing", "--score-window", "16"],
    "automatic window, 15": ["--packing", "--score-window", "auto"],
    "window of 4": ["--packing", "--score-window", "4"],
    "4 steps a call": [*PACKED, "--steps-per-execution", "4"],
    "bfloat16": [*PACKED, "--dtype", "bfloat16"],
}


def main() -> None:
    """Train every variant; print its end beside that of the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data-dir", required=True, help="folder of SST-2")
    parser.add_argument("--output-dir", type=Path, required=True, help="of all runs; they resume")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    words = parser.parse_args()
    shared = FLAGS | {"model": words.model, "data-dir": words.data_dir, "seed": 41}
    common = [str(word) for name, value in shared.items() for word in (f"--{name}", value)]
    exact: dict[str, Any] = {}
    for name in words.only:
        folder = words.output_dir / name.replace(" ", "-").replace(",", "")
        told = train(parse_run([*common, *VARIANTS[name], "--output-dir", str(folder)]))
        exact = exact or told
        sys.stdout.write(compare(name, told, exact) + "\n")
        sys.stdout.flush()


def compare(name: str, told: dict[str, Any], exact: dict[str, Any]) -> str:
    """Return a row of the table: growth and metric of a run, and its growth shared with another."""
    both = Counter(grants(told)) & Counter(grants(exact))
    shared = " + ".join(
        str(sum(count for (at, _), count in both.items() if at == step)) for step in exact["rounds"]
    )
    ranks = sum(min(told["ranks"][m] - 1, exact["ranks"][m] - 1) for m in exact["ranks"])
    return (
        f"| {name} | {told['metrics']['accuracy']:.4f} | {shared} | {ranks} of "
        f"{exact['rank_budget'] - len(exact['ranks'])} | {told['padding_share']:.0%} |"
    )


def grants(told: dict[str, Any]) -> list[tuple[str, str]]:
    """List all granted slots as (step, module)."""
    return [
        (step, module)
        for step, growth in told["rounds"].items()
        for module, count in growth.items()
        for _ in range(count)
    ]


if __name__ == "__main__":
    main()

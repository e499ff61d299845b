"""Metrics of packed and of padded runs over three seeds, on three real tasks."""

import argparse
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from increlora_jax.run.command_line import parse_run
from increlora_jax.train import train

STEPS = {"sst2": 160, "mrpc": 120, "stsb": 160}
LENGTHS = {"sst2": 64, "mrpc": 96, "stsb": 64}
FOLDERS = {"sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B"}
FLAGS = {"seeds": "41,42,43", "target-rank": 2, "learning-rate": 1e-3, "eval-steps": 10_000}


def main() -> None:
    """Train every task packed and padded; print the metric of each seed and the differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder of a BERT encoder")
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder of GLUE's folders")
    parser.add_argument("--output-dir", type=Path, required=True, help="of all runs; they resume")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    words = parser.parse_args()
    for task in words.only:
        packed, padded = (
            run(words, task, packing, words.output_dir / f"{task}{packing}")
            for packing in ("--packing", "--no-packing")
        )
        say(task, packed, padded)


def run(words: argparse.Namespace, task: str, packing: str, folder: Path) -> list[float]:
    """Train three seeds together; return the first metric of each on dev.

    Args:
        words: The command's flags.
        task: A task of `STEPS`.
        packing: The flag for packed or padded batches.
        folder: Of the runs.
    """
    flags = FLAGS | {
        "task": task,
        "model": words.model,
        "data-dir": words.data_dir / FOLDERS[task],
        "max-steps": STEPS[task],
        "max-seq-length": LENGTHS[task],
        "output-dir": folder,
    }
    given = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    told: dict[str, Any] = train(parse_run([*given, packing]))
    return next(iter(told["variants"][0]["metrics"].values()))["values"]


def say(task: str, packed: list[float], padded: list[float]) -> None:
    """Print a row of the table."""
    differences = [a - b for a, b in zip(packed, padded, strict=True)]
    each = [" ".join(f"{value:.4f}" for value in values) for values in (packed, padded)]
    error = stdev(differences) / len(differences) ** 0.5
    sys.stdout.write(
        f"| {task} | {each[0]} | {each[1]} | {mean(differences):+.4f} ± {error:.4f} |\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()

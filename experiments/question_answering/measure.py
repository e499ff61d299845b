"""Question answering with a small encoder: growing ranks, fixed ranks, and an untrained head.

The script trains on all but the last articles of SQuAD's training file, and scores the questions on
those articles.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from increlora_jax.run.build import plan_run, prepare_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.train import train

HELD_OUT = 2  # articles
SETTINGS = {
    "task": "squad",
    "max-seq-length": 192,
    "doc-stride": 64,
    "train-batch-size": 16,
    "eval-batch-size": 32,
    "learning-rate": 1e-3,
    "num-train-epochs": 2,
    "target-rank": 4,
}


def main() -> None:
    """Print a row for each method; results are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--squad", type=Path, required=True, help="a training file of SQuAD v1.1")
    parser.add_argument("--model", required=True, help="folder of an encoder")
    parser.add_argument("--output-dir", type=Path, required=True, help="of data and runs")
    parser.add_argument("--methods", nargs="+", default=["untrained", "increlora", "lora"])
    words = parser.parse_args()
    folder = words.output_dir / "data"
    if not folder.is_dir():
        _write_data(words.squad, folder)
    for method in words.methods:
        row = {"method": method, **_measure(method, folder, words)}
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


def _measure(method: str, folder: Path, words: argparse.Namespace) -> dict[str, Any]:
    flags = {
        **SETTINGS,
        "data-dir": folder,
        "model": words.model,
        "method": "increlora" if method == "untrained" else method,
        "output-dir": words.output_dir / method,
    }
    config = parse_run(
        [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
    )
    if method == "untrained":
        run = prepare_run(plan_run(config))
        return dict(run.evaluator.metrics(run.first_state(), run.parts.base))
    results = train(config)
    told = ("steps", "total_rank", "seconds", "train_tokens_per_second")
    return {**results["metrics"], **{name: results[name] for name in told}}


def _write_data(squad: Path, folder: Path) -> None:
    """Write the training articles and the held-out ones."""
    articles = json.loads(squad.read_text(encoding="utf-8"))["data"]
    folder.mkdir(parents=True)
    for split, own in {"train": articles[:-HELD_OUT], "dev": articles[-HELD_OUT:]}.items():
        text = json.dumps({"version": "1.1", "data": own})
        (folder / f"{split}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

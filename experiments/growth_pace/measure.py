"""Start and end of growth, number of rounds, and length of warmups: a comparison of schedules.

The script trains one model with hand-set schedules and with `auto`, on data of 300, 5,000 and
60,000 rows.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from increlora_jax.run.command_line import parse_run
from increlora_jax.train import train
from increlora_jax.weights.bundled import TINY_ENCODER

DEV_ROWS = 1500
BATCH_SIZE = 32
EPOCHS = 3  # the default of --num-train-epochs
SEEDS = "41,42,43"
RANKS = {"tiny": 12, "minilm": 36}  # ranks to grant: one for every module


class Schedule(NamedTuple):
    """A schedule set by hand: shares of the run, and rounds between them."""

    begin: float
    end: float
    rounds: int
    warmup: float

    def flags(self, steps: int, ranks: int) -> dict[str, Any]:
        """Return the flags of a run with the given numbers of steps and ranks."""
        begin, end = round(self.begin * steps), round(self.end * steps)
        top_h = ceil(ranks / max(1, min(self.rounds, ranks, end - begin)))
        interval = max(1, (end - begin) // ceil(ranks / top_h))
        return {
            "init-warmup": begin,
            "incre-interval": interval,
            "top-h": top_h,
            "warmup-steps": round(self.warmup * steps),
        }


SCHEDULES: dict[str, Schedule | None] = {
    "auto": None,
    "5 to 35 %, 15 rounds": Schedule(0.05, 0.35, 15, 0.06),
    "5 to 35 %, 4 rounds": Schedule(0.05, 0.35, 4, 0.06),
    "0 to 15 %, 15 rounds": Schedule(0.0, 0.15, 15, 0.06),
    "0 to 15 %, 4 rounds": Schedule(0.0, 0.15, 4, 0.06),
    "10 to 50 %, 8 rounds": Schedule(0.1, 0.5, 8, 0.06),
    "5 to 60 %, 15 rounds": Schedule(0.05, 0.6, 15, 0.06),
    "5 to 35 %, 15 rounds, warmup 2 %": Schedule(0.05, 0.35, 15, 0.02),
    "5 to 35 %, 15 rounds, warmup 20 %": Schedule(0.05, 0.35, 15, 0.2),
}
DATA = {"questions-300": 300, "questions-5000": 5000, "reviews-5000": 5000, "reviews-60000": 60_000}


def main() -> None:
    """Train every schedule on every data set and print a row for each; results are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="holds glue/SST-2 and squad")
    parser.add_argument("--minilm", help="folder of all-MiniLM-L6-v2; default: the tiny encoder")
    parser.add_argument("--output-dir", type=Path, required=True, help="of data and runs")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    words = parser.parse_args()
    for name in words.data:
        folder = words.output_dir / "data" / name
        if not folder.is_dir():
            _write_data(name, words.data_dir, folder)
        for schedule in words.schedules:
            row = _measure(name, schedule, folder, words)
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()


def _measure(data: str, schedule: str, folder: Path, words: argparse.Namespace) -> dict[str, Any]:
    """Train the seeds of one schedule, and return the results."""
    model = "minilm" if words.minilm else "tiny"
    steps = EPOCHS * ceil(DATA[data] / BATCH_SIZE)
    chosen = SCHEDULES[schedule]
    name = f"{model}-{data}-{schedule}-{words.learning_rate:g}".replace(" ", "_").replace(",", "")
    flags = {
        "task": "text",
        "data-dir": folder,
        "model": words.minilm or TINY_ENCODER,
        "learning-rate": words.learning_rate,
        "max-seq-length": 64,
        "eval-steps": steps,
        "seeds": SEEDS,
        "output-dir": words.output_dir / name,
        **(chosen.flags(steps, RANKS[model]) if chosen else {}),
    }
    line = [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
    (told,) = train(parse_run([*line, "--packing"]))["variants"]
    accuracy = told["metrics"]["accuracy"]
    return {
        "model": model,
        "data": data,
        "schedule": schedule,
        "learning_rate": words.learning_rate,
        "steps": steps,
        "accuracy": round(accuracy["mean"], 4),
        "sd": round(accuracy["sample_standard_deviation"], 4),
        "total_rank": told["total_rank"],
    }


def _write_data(name: str, source: Path, folder: Path) -> None:
    """Write train and dev: questions with their articles, or film reviews."""
    kind, _, count = name.partition("-")
    rows = list(_questions(source) if kind == "questions" else _reviews(source, "train"))
    random.Random(0).shuffle(rows)
    dev = rows[:DEV_ROWS] if kind == "questions" else list(_reviews(source, "dev"))
    first = DEV_ROWS if kind == "questions" else 0
    folder.mkdir(parents=True)
    for split, own in {"train": rows[first : first + int(count)], "dev": dev}.items():
        lines = ["text\tlabel", *("\t".join(row) for row in own)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _questions(source: Path) -> Iterator[tuple[str, str]]:
    """Yield SQuAD's questions with their article's title: 28 labels of short texts, as in TREC."""
    for file in ("train-v1.1.partial.json", "cs224n-dev-v2.0.json"):
        for article in json.loads((source / "squad" / file).read_text(encoding="utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                for entry in paragraph["qas"]:
                    yield " ".join(entry["question"].split()), article["title"]


def _reviews(source: Path, split: str) -> Iterator[tuple[str, str]]:
    """Yield SST-2's sentences."""
    file = source / "glue" / "SST-2" / f"{split}.tsv"
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        text, label = line.rsplit("\t", 1)
        yield text, label


if __name__ == "__main__":
    main()

"""One job carried out: a grid trained together, then the best of it with new seeds."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plan import Job

HELD_OUT = 500
"""Rows of the training file that variants are tuned on at most; a tenth of a smaller file."""

QUICK_MODEL = "tiny"


def carry_out(job: Job, *, model: str | None, data: Path | None, output: Path) -> dict[str, Any]:
    """Train and report a job; a run that was stopped continues.

    Args:
        job: The job.
        model: A model's folder or hub id, unless the job has one; the demo has its own.
        data: The folder of GLUE's folders; None for the demo.
        output: The folder of all runs.

    Returns:
        The job's line of results.
    """
    began = time.perf_counter()
    folder = output / job.study / job.folder
    tuned_on, reported_on = _prepare(job, data, output)
    words = ["--task", job.task, *job.words(), *_pattern(job, output)]
    if data is not None:
        words += ["--model", job.model or model, "--data-dir", str(tuned_on)]
    if "steps" in job.told:
        words += ["--max-steps", str(job.told["steps"])]
    if "max-seq-length" in job.told:
        words += ["--max-seq-length", str(job.told["max-seq-length"])]
    metric = job.told["metric"]
    tuned = _train(words, [job.tuning_seed], job.grid, folder / "tuned")
    trials = [
        {"settings": trial["settings"], "value": trial["metrics"][metric]["values"][0]}
        for trial in tuned["variants"]
    ]
    best = max(trials, key=lambda trial: trial["value"])["settings"]
    chosen = {name: (value,) for name, value in best.items()}
    found = _train(words, job.seeds, chosen, folder / "reported")
    (variant,) = found["variants"]
    runs = [folder / "reported" / name for name in variant["members"]]
    first = json.loads((runs[0] / "results.json").read_text(encoding="utf-8"))
    counts = first["trainable_parameters"]
    return {
        **job.key,
        "metric": metric,
        "chosen": best,
        "trials": trials,
        "held_out": variant["metrics"][metric]["values"],
        "values": [_report(run, reported_on, metric) for run in runs],
        "parameters": counts["active"] + counts["added"],
        "training_seconds": round(tuned["seconds"] + found["seconds"], 1),
        "seconds": round(time.perf_counter() - began, 1),
        "versions": found["versions"],
        "platform": found["platform"],
    }


def _train(
    words: Sequence[str], seeds: Sequence[int], grid: Mapping[str, Sequence[float]], folder: Path
) -> dict[str, Any]:
    """Train settings × seeds as one program; return its results."""
    sweep = [f"{name.replace('-', '_')}={','.join(map(repr, v))}" for name, v in grid.items()]
    call("train", *words, "--seeds", ",".join(map(str, seeds)), "--sweep", *sweep,
         "--eval-steps", "1000000", "--output-dir", str(folder))  # fmt: skip
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


def _report(run: Path, data: Path | None, metric: str) -> float:
    """Return the metric of a run on the split that nothing was chosen on."""
    words = [] if data is None else ["--data-dir", str(data)]
    told: dict[str, float] = json.loads(call("evaluate", "--run", str(run), *words))
    return told[metric]


def _pattern(job: Job, output: Path) -> list[str]:
    """Return the flag of the ranks that another variant has found with its first seed."""
    if job.pattern_of is None:
        return []
    folder = output / job.study / job.folder.replace(job.variant.replace(" ", "-"), job.pattern_of)
    results = json.loads((folder / "reported" / "results.json").read_text(encoding="utf-8"))
    (variant,) = results["variants"]
    first = folder / "reported" / variant["members"][0]
    return ["--rank-pattern", str(first / "results.json")]


def _prepare(job: Job, data: Path | None, output: Path) -> tuple[Path | None, Path | None]:
    """Return the folders to tune on and to report on; the first holds rows out of train."""
    if data is None:
        return None, None
    source = data / job.told["folder"]
    folder = output / "data" / f"{job.task}-{job.rows or 'all'}"
    header, *rows = (source / "train.tsv").read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(rows)
    count = min(HELD_OUT, len(rows) // 10)
    kept = rows[count:][: job.rows or None]
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("train", kept), ("dev", rows[:count])):
        text = "\n".join([header, *lines]) + "\n"
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")
    return folder, source


def call(command: str, *words: str) -> str:
    """Run a command of the package; return what it prints.

    Raises:
        SystemExit: If it fails; its own message is printed.
    """
    whole = [sys.executable, "-m", f"increlora_jax.{command}", *words]
    done = subprocess.run(whole, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(whole)}\n{done.stderr[-3000:]}")
    return done.stdout

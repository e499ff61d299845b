"""One job carried out: its grid and seeds trained as one program, the best reported."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
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
        words += (
            ["--max-seq-length", str(job.told["max-seq-length"])] if "steps" in job.told else []
        )
    if "steps" in job.told:
        words += ["--max-steps", str(job.told["steps"])]
    sweep = [f"{name.replace('-', '_')}={','.join(map(repr, v))}" for name, v in job.grid.items()]
    call("train", *words, "--seeds", ",".join(map(str, job.seeds)), "--sweep", *sweep,
         "--eval-steps", "1000000", "--output-dir", str(folder))  # fmt: skip
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    metric = job.told["metric"]
    trials = [_trial(variant, metric) for variant in results["variants"]]
    best = max(trials, key=lambda trial: mean(trial["values"]))
    runs = [folder / name for name in best["members"]]
    reported = [_report(run, reported_on, metric) for run in runs]
    first = json.loads((runs[0] / "results.json").read_text(encoding="utf-8"))
    counts = first["trainable_parameters"]
    return {
        **job.key,
        "metric": metric,
        "chosen": best["settings"],
        "trials": [{k: trial[k] for k in ("settings", "values")} for trial in trials],
        "values": reported,
        "parameters": counts["active"] + counts["added"],
        "training_seconds": results["seconds"],
        "seconds": round(time.perf_counter() - began, 1),
        "versions": results["versions"],
        "platform": results["platform"],
    }


def _trial(variant: Mapping[str, Any], metric: str) -> dict[str, Any]:
    return {
        "settings": variant["settings"],
        "members": variant["members"],
        "values": variant["metrics"][metric]["values"],
    }


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
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    trials = [_trial(variant, job.told["metric"]) for variant in results["variants"]]
    best = max(trials, key=lambda trial: mean(trial["values"]))
    return ["--rank-pattern", str(folder / best["members"][0] / "results.json")]


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

"""Train a study of `studies.yaml`, variant by variant: `python run.py STUDY --model DIR …`.

Finished jobs are lines of results/STUDY.jsonl and are never repeated; a stopped one continues.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emit import FORMATS, emit
from plan import HERE, Job, plan_jobs, read_studies
from render import render
from trials import carry_out


def main() -> None:
    """Carry out the jobs that are missing, then draw tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=list(read_studies()["studies"]))
    parser.add_argument("--quick", action="store_true", help="on the demo's task, in minutes")
    parser.add_argument("--model", help="the base model's folder or hub id")
    parser.add_argument("--data-dir", type=Path, help="the folder of GLUE's folders")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/compare"))
    parser.add_argument("--only", nargs="+", help="variants or tasks to train now")
    parser.add_argument("--job", type=int, help="the number of one job, as a job array gives it")
    parser.add_argument("--render", action="store_true", help="only draw what is there")
    parser.add_argument("--emit", choices=FORMATS, help="write a job array instead of training")
    options = parser.parse_args()
    jobs = plan_jobs(options.study, is_quick=options.quick)
    if options.emit:
        sys.stdout.write(emit(options.emit, jobs, sys.argv[1:]))
        return
    if not options.render:
        train(options, jobs)
    render(jobs, read_lines(jobs[0].study))


def train(options: argparse.Namespace, jobs: list[Job]) -> None:
    """Carry out the jobs that have no line yet.

    Raises:
        SystemExit: If model or data is not given.
    """
    has_model = all(job.model or options.model for job in jobs)
    if not options.quick and not (has_model and options.data_dir):
        raise SystemExit("--model and --data-dir are needed, or --quick")
    chosen = jobs if options.job is None else [jobs[options.job]]
    for job in select(chosen, options.only or ()):
        if any(line | job.key == line for line in read_lines(job.study)):
            continue
        say(f"{job.folder} …")
        data = None if options.quick else options.data_dir
        line = carry_out(
            job, model=job.model or options.model, data=data, output=options.output_dir
        )
        with results_of(job.study).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        say(f"  {line['metric']} {line['values']}, {line['seconds']:.0f} s")


def select(jobs: list[Job], names: Iterable[str]) -> list[Job]:
    """Return the jobs of the named variants, or all variants, at the named tasks, or all tasks.

    Raises:
        SystemExit: If a name is neither a variant nor a task of these jobs.
    """
    variants, tasks = {job.variant for job in jobs}, {job.task for job in jobs}
    if unknown := set(names) - variants - tasks:
        raise SystemExit(
            f"--only {' '.join(sorted(unknown))}: variants are {', '.join(sorted(variants))};"
            f" tasks are {', '.join(sorted(tasks))}"
        )
    variants, tasks = variants & set(names) or variants, tasks & set(names) or tasks
    return [job for job in jobs if job.variant in variants and job.task in tasks]


def read_lines(study: str) -> list[dict[str, Any]]:
    """Return the results of a study so far."""
    path = results_of(study)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def results_of(study: str) -> Path:
    """Return the file of a study's results, in a folder that exists."""
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    return folder / f"{study}.jsonl"


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

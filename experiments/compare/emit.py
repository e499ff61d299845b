"""Job arrays of a study for SLURM or a JobSet: one task of the array carries out one job."""

import shlex
from collections.abc import Sequence

import yaml
from plan import Job

FORMATS = ("slurm", "jobset")


def emit(form: str, jobs: Sequence[Job], argv: Sequence[str]) -> str:
    """Return the file of a job array.

    Args:
        form: Of `FORMATS`.
        jobs: All jobs of the study.
        argv: The words of the command; --emit is left out.
    """
    words = list(argv)
    place = words.index("--emit") if "--emit" in words else None
    if place is not None:
        del words[place : place + 2]
    command = shlex.join(["python", "experiments/compare/run.py", *words])
    count, name = len(jobs), f"compare-{jobs[0].study}".replace("_", "-")
    return _slurm(name, count, command) if form == "slurm" else _jobset(name, count, command)


def _slurm(name: str, count: int, command: str) -> str:
    return f"""#!/bin/bash
# {count} jobs; one that is preempted is put back and continues. Jobs that replay another's ranks
# need its results: run those again at the end.
#SBATCH --job-name={name}
#SBATCH --array=0-{count - 1}
#SBATCH --gpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60
#SBATCH --open-mode=append

set -eu
{command} --job "$SLURM_ARRAY_TASK_ID"
"""


def _jobset(name: str, count: int, command: str) -> str:
    container = {
        "name": "compare",
        "image": "REGISTRY/increlora-jax:TAG",
        "command": ["bash", "-c", f'{command} --job "$JOB_COMPLETION_INDEX"'],
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }
    pod = {"restartPolicy": "OnFailure", "containers": [container]}
    job = {
        "completionMode": "Indexed",
        "completions": count,
        "parallelism": min(count, 8),
        "template": {"spec": pod},
    }
    whole = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name},
        "spec": {"replicatedJobs": [{"name": "train", "replicas": 1, "template": {"spec": job}}]},
    }
    return yaml.safe_dump(whole, sort_keys=False)

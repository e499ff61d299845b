"""The example job files: well formed, and with no flag that the command does not know."""

import re
import shlex
import subprocess
from math import prod
from pathlib import Path

import pytest
import yaml

from increlora_jax.run.command_line import parse_run
from increlora_jax.runtime.processes import BY_HAND

FOLDER = Path(__file__).parent.parent / "experiments" / "launch"
SCRIPTS = ("slurm.sbatch", "tpu_vm.sh")


def words_of(name):
    """The words after the training command's name."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    if name.endswith(".yaml"):
        return container_of(yaml.safe_load(text))["args"]
    (command,) = re.findall(r"increlora_jax\.train ((?:\\\n|[^\n])*)", text)
    return shlex.split(command.replace("\\\n", " ").replace('"', ""))


def container_of(job):
    (replicated,) = job["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_shell_understands_it(name):
    subprocess.run(["bash", "-n", str(FOLDER / name)], check=True)


@pytest.mark.parametrize(
    ("name", "devices"), [("slurm.sbatch", 32), ("jobset.yaml", 8), ("tpu_vm.sh", 16)]
)
def test_its_flags_are_the_commands_and_its_mesh_is_the_jobs(name, devices):
    training = parse_run(words_of(name)).training
    assert training.distributed
    assert prod(int(size) for size in re.findall(r"=(\d+)", training.mesh)) == devices
    assert training.train_batch_size % devices == training.eval_batch_size % devices == 0


def test_slurm_asks_for_as_many_devices_as_the_mesh_has():
    text = (FOLDER / "slurm.sbatch").read_text(encoding="utf-8")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\d+)$", text, re.MULTILINE))
    assert int(asked["nodes"]) * int(asked["gpus-per-node"]) == 32
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert "#SBATCH --requeue\n" in text
    assert "#SBATCH --signal=TERM@60\n" in text


def test_the_pods_are_told_their_part():
    job = yaml.safe_load((FOLDER / "jobset.yaml").read_text(encoding="utf-8"))
    container, (replicated,) = container_of(job), job["spec"]["replicatedJobs"]
    told = {variable["name"]: variable for variable in container["env"]}
    assert set(told) == set(BY_HAND)
    pods = replicated["template"]["spec"]["completions"]
    assert told["JAX_NUM_PROCESSES"]["value"] == str(pods)
    assert pods * int(container["resources"]["limits"]["nvidia.com/gpu"]) == 8

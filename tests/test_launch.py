"""The example job files: well-formed, and every flag in them is one of the command's."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from increlora_jax.parsing import parse_run
from increlora_jax.training.sharding import make_mesh

FOLDER = Path(__file__).parents[1] / "experiments" / "launch"
COMMAND = re.compile(r"python -m increlora_jax\.train((?: \\\n|[^\n])*?)(?:\|\||\n\"|\n\n|$)", re.S)


def words_of_shell(path):
    (command,) = COMMAND.findall(path.read_text())
    return command.replace("\\\n", " ").replace('"', "").replace("'", "").split()


def container():
    job = yaml.safe_load((FOLDER / "jobset.yaml").read_text())["spec"]["replicatedJobs"][0]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return container


COMMANDS = {
    "slurm.sbatch": lambda: words_of_shell(FOLDER / "slurm.sbatch"),
    "tpu_vm.sh": lambda: words_of_shell(FOLDER / "tpu_vm.sh"),
    "jobset.yaml": lambda: container()["command"][3:],
}


def test_no_job_file_is_left_out():
    assert {path.name for path in FOLDER.iterdir()} == {*COMMANDS, "README.md"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_is_one_of_ours(name):
    words = COMMANDS[name]()
    training = parse_run(words).training
    assert len(words) > 6
    assert training.distributed
    assert training.output_dir.endswith("/mnli")
    with pytest.raises(ValueError, match="a mesh of 16 devices, and there"):
        make_mesh(training.mesh)


@pytest.mark.parametrize("name", ["slurm.sbatch", "tpu_vm.sh"])
def test_the_shell_can_read_it(name):
    subprocess.run(["bash", "-n", FOLDER / name], check=True)


def test_every_pod_is_told_its_part():
    named = {entry["name"] for entry in container()["env"]}
    assert named == {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"}

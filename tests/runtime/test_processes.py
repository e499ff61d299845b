"""Two processes of two CPU devices each train one run over loopback, by the real command."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from increlora_jax.errors import InputError
from increlora_jax.run.command_line import parse_run
from increlora_jax.runtime.console import is_first
from increlora_jax.runtime.processes import BY_HAND, by_first, joined
from increlora_jax.train import train

STEPS, PROCESSES, DEVICES = 40, 2, 2
RTOL = 1e-3
"""Sums over four devices are made in another order, in float32; over 40 steps that adds up."""


class Together:
    """The training command, started as several processes at once."""

    def __init__(self, words, folder):
        self._words = words
        self.folder = folder
        self._started = []

    def launch(self, run, *more):
        """Start all processes; what process i says goes to `said(i)`."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [*self._words, "--output-dir", str(self.folder / run), "--distributed", *more]
        processes = [self._start(index, port, words) for index in range(PROCESSES)]
        self._started += processes
        return processes

    def end(self):
        """Leave nothing running that a failed test has started."""
        for process in self._started:
            process.kill()

    def _start(self, index, port, words):
        values = (f"127.0.0.1:{port}", str(PROCESSES), str(index))
        flags = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
        }
        with (self.folder / f"said-{index}").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "increlora_jax.train", *words],
                env=os.environ | flags | dict(zip(BY_HAND, values, strict=True)),
                stdout=said,
                stderr=said,
            )

    def said(self, index):
        return (self.folder / f"said-{index}").read_text()

    def finish(self, run, *more):
        """Run to the end, and give the results."""
        processes = self.launch(run, *more)
        statuses = [process.wait(timeout=300) for process in processes]
        assert statuses == [0] * PROCESSES, self.said(0)[-2000:] + self.said(1)[-2000:]
        return results_of(self.folder / run)


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def losses_of(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == "train"]


@pytest.fixture(scope="module")
def words(short_words, tmp_path_factory):
    more = {"--max-steps": STEPS, "--eval-steps": STEPS // 2, "--lora-dropout": 0.1}
    more_words = (str(word) for pair in more.items() for word in pair)
    return [*short_words, *more_words, "--no-packing"]  # a mesh pads, and dropout follows the shape


@pytest.fixture(scope="module")
def together(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    started = Together([*words, "--compilation-cache-dir", str(folder / "programs")], folder)
    yield started
    started.end()


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory):
    """The folder of the same run in one process, on one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(parse_run([*words, "--output-dir", str(folder)]))
    return folder


def assert_alike(folder, alone):
    """The same growth and metrics, and nearly the same losses."""
    got, expected = results_of(folder), results_of(alone)
    for name in ("rounds", "ranks", "total_rank", "metrics"):
        assert got[name] == expected[name], name
    np.testing.assert_allclose(losses_of(folder), losses_of(alone), rtol=RTOL)


def wait_for_lines(processes, path, count):
    end = time.monotonic() + 400
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < end, "no such line within 400 s"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_the_run_goes_on(together, alone):
    """SIGTERM, then the same command again: it ends like a run of one process."""
    folder = together.folder / "stopped"
    processes = together.launch("stopped")
    wait_for_lines(processes, folder / "metrics.jsonl", 1)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=30) for process in processes] == [128 + signal.SIGTERM] * 2
    (saved,) = [int(path.name) for path in (folder / "checkpoints").iterdir()]
    assert 0 < saved < STEPS
    assert len(losses_of(folder)) == saved
    together.finish("stopped")
    assert f"resuming from the checkpoint of step {saved}" in together.said(0)
    assert_alike(folder, alone)
    # Only the first process tells and writes.
    assert "accuracy" not in together.said(1)
    assert results_of(folder)["mesh"] == {"data": PROCESSES * DEVICES, "fsdp": 1, "tensor": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", ["data=2,fsdp=2", "fsdp=2,tensor=2", "tensor=4", "data=2,tensor=2"]
)
def test_every_mesh_over_both_processes_comes_to_the_same(together, alone, mesh):
    results = together.finish(mesh, "--mesh", mesh)
    assert_alike(together.folder / mesh, alone)
    assert results["step_compilations"] == results_of(alone)["step_compilations"]


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(together, words, alone):
    folder = together.folder / "alone-again"
    processes = together.launch("alone-again", "--mesh", "data=2,fsdp=2")
    wait_for_lines(processes, folder / "metrics.jsonl", 3)
    processes[0].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=30) for process in processes] == [128 + signal.SIGTERM] * 2
    train(parse_run([*words, "--output-dir", str(folder)]))
    assert_alike(folder, alone)


@pytest.mark.slow
def test_what_the_first_process_refuses_all_refuse(together):
    folder = together.folder / "taken"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("somebody's\n")
    processes = together.launch("taken")
    assert [process.wait(timeout=120) for process in processes] == [2, 2]
    for index in range(PROCESSES):
        assert "already holds a run (metrics.jsonl)" in together.said(index)


def test_without_a_scheduler_or_variables_the_flag_says_what_to_set(monkeypatch):
    for name in BY_HAND:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=rf"--distributed: .*{', '.join(BY_HAND)}"), joined(True):
        pass


NO_DEVICE = """
import jax
from increlora_jax.runtime.ending import fail_clearly
from increlora_jax.runtime.processes import check_devices
with fail_clearly():
    check_devices()
"""


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_device_that_is_not_there_is_said_in_a_line(platform):
    done = subprocess.run(
        [sys.executable, "-c", NO_DEVICE],
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"error: JAX_PLATFORMS={platform}: JAX cannot compute there (")


def test_half_the_variables_are_refused(monkeypatch):
    monkeypatch.setenv(BY_HAND[0], "127.0.0.1:1")
    monkeypatch.delenv(BY_HAND[1], raising=False)
    with pytest.raises(InputError, match=re.escape(f"{BY_HAND[1]} is not set")), joined(True):
        pass


def test_one_process_decides_for_itself():
    with joined(False):
        assert is_first()
        assert by_first(lambda: [1, "two"]) == [1, "two"]


def test_no_import_asks_for_a_device():
    """Processes find each other before the first use of a device, or not at all."""
    code = "import increlora_jax.train, jax; jax.distributed.initialize('127.0.0.1:1', 1, 0)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "before any JAX calls" not in told.stderr

"""Runs that are killed or stopped, as real processes: they end as if nothing had happened."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from increlora_jax.runtime.preemption import GRACE

STEPS, SAVE_STEPS = 40, 4
ALLOWED = 30.0
"""Seconds a stopped run may take to leave."""


class Runs:
    """Processes that train the same thing, in folders of choice."""

    def __init__(self, words, folder):
        self._words = words
        self.folder = folder
        self.said = folder / "said.txt"

    def launch(self, run, *more):
        """Start the training command; what it says goes to `said`."""
        words = [*self._words, "--output-dir", str(self.folder / run), *more]
        with self.said.open("wb") as said:
            command = [sys.executable, "-m", "increlora_jax.train", *words]
            return subprocess.Popen(command, stderr=said, stdout=said)

    def finish(self, run, *more):
        """Run to the end, and give what the run left."""
        status = self.launch(run, *more).wait(timeout=600)
        assert status == 0, self.said.read_text()[-2000:]
        return self.left(run)

    def left(self, run):
        """Everything that must be the same in every run, however it came about."""
        folder = self.folder / run
        results = json.loads((folder / "results.json").read_text())
        state = ocp.StandardCheckpointer().restore(folder / "checkpoints" / str(STEPS) / "state")
        adapters = [
            folder / name / "adapter_model.safetensors" for name in ("adapter", "adapter-best")
        ]
        return {
            "log": (folder / "metrics.jsonl").read_bytes(),
            "adapters": [path.read_bytes() for path in adapters],
            "state": {name: np.asarray(value).tobytes() for name, value in state.items()},
            **{name: results[name] for name in ("metrics", "best_metrics", "rounds", "total_rank")},
        }

    def lines(self, run):
        """How many lines the log has."""
        try:
            return (self.folder / run / "metrics.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:  # not there yet, or a run without a checkpoint begins anew
            return 0

    def is_saving(self, run):
        """Whether a checkpoint is being written."""
        return any((self.folder / run / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

    def has_said(self, text):
        """Whether the process at work has said something."""
        return text.encode() in self.said.read_bytes()


@pytest.fixture(scope="module")
def runs(short_words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    more = {
        "--compilation-cache-dir": folder / "programs",
        "--max-steps": STEPS,
        "--eval-steps": 10,
        "--save-steps": SAVE_STEPS,
        "--incre-interval": 6,
        "--lora-dropout": 0.1,
    }
    return Runs([*short_words, *(str(word) for pair in more.items() for word in pair)], folder)


@pytest.fixture(scope="module")
def whole(runs):
    """What a run leaves that nothing happened to, and the seconds it takes once compiled."""
    runs.finish("first")
    began = time.monotonic()
    return runs.finish("whole"), time.monotonic() - began


def wait_for(process, condition):
    """Look every few milliseconds until something has come about, or the process has ended."""
    end = time.monotonic() + 300
    while process.poll() is None and not condition():
        assert time.monotonic() < end, "it did not come about within 300 s"
        time.sleep(0.003)


def test_a_signal_in_every_phase_loses_nothing(runs, whole):
    """One run, stopped in its import, first compile, step, growth, save and evaluation."""
    began = time.monotonic()
    phases = {
        "import": lambda: time.monotonic() > began + 1,
        "first compile": lambda: runs.has_said("trainable parameters"),
        "step": lambda: runs.lines("stopped") >= 2,
        "growth": lambda: b'"total_rank": 16' in read(runs, "stopped"),
        "save": lambda: runs.is_saving("stopped"),
        "evaluation": lambda: runs.lines("stopped") >= 30,
    }
    for phase, has_come in phases.items():
        # What is cached, by the runs before, is not compiled.
        more = ("--compilation-cache-dir", "off") if phase == "first compile" else ()
        process = runs.launch("stopped", *more)
        wait_for(process, has_come)
        signum = signal.SIGTERM if phase != "growth" else signal.SIGINT
        process.send_signal(signum)
        at, lines = time.monotonic(), runs.lines("stopped")
        status = process.wait(timeout=ALLOWED)
        assert time.monotonic() - at < ALLOWED
        # Before Python has come to our own code, the signal's default ends the process.
        assert status in ((128 + signum, -signum) if phase == "import" else (128 + signum,)), (
            phase,
            runs.said.read_text()[-2000:],
        )
        if phase not in ("import", "first compile"):
            assert newest(runs, "stopped") >= lines - without_a_step(runs, "stopped") - 1, phase
    assert runs.finish("stopped") == whole[0]
    assert runs.has_said("resuming from the checkpoint")


def read(runs, run):
    path = runs.folder / run / "metrics.jsonl"
    return path.read_bytes() if path.exists() else b""


def newest(runs, run):
    names = [path.name for path in (runs.folder / run / "checkpoints").iterdir()]
    return max(int(name) for name in names if name.isdecimal())


def without_a_step(runs, run):
    """How many lines of the log are of no step: evaluations, and rounds of growth."""
    log = read(runs, run)
    return log.count(b'"split": "dev"') + log.count(b'"split": "growth"')


def kill_at_random(runs, whole, kills, seed):
    """Kill runs at random moments; each must end like the first.

    A third of the moments are while a checkpoint is written, a third after some more steps, however
    long a busy machine takes for them, and a third at any time from the start of the process on.
    """
    draw = random.Random(seed)
    expected, duration = whole
    killed = run = 0
    while killed < kills:
        name = f"killed-{kills}-{run}"
        process = runs.launch(name)
        match killed % 3:
            case 0:
                wait_for(process, lambda name=name: runs.is_saving(name))
                time.sleep(draw.uniform(0, 0.1))
            case 1:
                lines = runs.lines(name) + draw.randrange(1, STEPS // 2)
                wait_for(process, lambda name=name, lines=lines: runs.lines(name) >= lines)
                time.sleep(draw.uniform(0, 0.1))
            case _:
                end = time.monotonic() + draw.uniform(0, duration)
                wait_for(process, lambda end=end: time.monotonic() > end)
        if process.poll() is None:
            process.kill()
            killed += 1
        process.wait()
        if (runs.folder / name / "results.json").exists():
            assert runs.finish(name) == expected
            run += 1
    assert runs.finish(name) == expected
    return run + 1


def test_killed_runs_end_like_one_that_was_not(runs, whole):
    kill_at_random(runs, whole, kills=4, seed=0)


@pytest.mark.slow
def test_a_hundred_kills(runs, whole):
    assert kill_at_random(runs, whole, kills=100, seed=1) > 3


def copy_of_whole(runs, name):
    shutil.copytree(runs.folder / "whole", runs.folder / name)
    return runs.folder / name


def test_a_finished_run_tells_its_results_again_and_trains_nothing(runs, whole):
    folder = copy_of_whole(runs, "finished")
    before = (folder / "results.json").stat().st_mtime_ns
    assert runs.finish("finished") == whole[0]
    assert runs.has_said("this run is finished: accuracy")
    assert (folder / "results.json").stat().st_mtime_ns == before


def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(runs, whole):
    folder = copy_of_whole(runs, "damaged")
    (folder / "results.json").unlink()
    last = folder / "checkpoints" / str(STEPS)
    (last / "manifest.json").write_bytes((last / "manifest.json").read_bytes()[:-1])
    assert runs.finish("damaged") == whole[0]
    assert runs.has_said(f"checkpoint {last} is not used: ")
    assert runs.has_said(f"resuming from the checkpoint of step {STEPS - SAVE_STEPS}")


def test_other_data_under_the_same_flags_is_refused(runs, whole, toy_data, tmp_path):
    folder = copy_of_whole(runs, "other-data")
    other = tmp_path / "other"
    shutil.copytree(toy_data, other)
    with (other / "train.tsv").open("a") as file:
        file.write("one more\t1\n")
    for _ in ("finished", "begun"):
        assert runs.launch("other-data", "--data-dir", str(other)).wait() == 2
        assert runs.has_said("was created with other inputs: data (")
        (folder / "results.json").unlink(missing_ok=True)


def test_two_processes_do_not_write_to_one_run(runs):
    (runs.folder / "run").mkdir()
    with (runs.folder / "run" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert runs.launch("run").wait() == 2
    assert runs.has_said("another process is at work on this run")
    assert os.listdir(runs.folder / "run") == [".lock"]


def test_a_second_signal_leaves_at_once(runs):
    process = runs.launch("twice")
    wait_for(process, lambda: runs.has_said("trainable parameters"))
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)
    at = time.monotonic()
    assert process.wait() == 128 + signal.SIGTERM
    assert time.monotonic() - at < GRACE / 2

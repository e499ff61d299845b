"""Trackers of experiments, by their own packages and without a network."""

import importlib
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from increlora_jax import train
from increlora_jax.errors import InputError
from increlora_jax.training.run_log import RunLog
from increlora_jax.training.trackers import PROJECT, Tracked, check_trackers, open_trackers

NUMBERS = {"loss": 0.5, "grad_norm": 1.25}


@pytest.fixture(scope="module")
def trackio_folder(tmp_path_factory):
    """The folder of Trackio's databases, in every module of it that has read the environment."""
    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder))
        importlib.import_module("trackio")
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "trackio" and "TRACKIO_DIR" in vars(module):
                patch.setattr(module, "TRACKIO_DIR", folder)
        yield folder


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No network, and the projects of the defaults."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def read_trackio(trackio_folder, monkeypatch, tmp_path):
    """Every (run, step, numbers) of a test's own project, in the order of writing."""
    monkeypatch.setenv("TRACKIO_PROJECT", tmp_path.name)

    def read():
        with closing(sqlite3.connect(trackio_folder / f"{tmp_path.name}.db")) as database:
            rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id")
            return [(name, step, json.loads(text)) for name, step, text in rows]

    return read


def open_log(folder, names, step=0):
    folder.mkdir(exist_ok=True)
    return RunLog(folder, trackers=open_trackers(names, Tracked(folder, "run", step, {"seed": 3})))


def read_wandb(folder):
    """The bytes of every run's file, which is not compressed."""
    return [file.read_bytes() for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def test_weights_and_biases_gets_every_number_and_the_settings(tmp_path, capsys):
    with open_log(tmp_path / "run", ["wandb"]) as log:
        for step in range(3):
            log.write(step, "train", NUMBERS)
        log.write(3, "dev", {"accuracy": 0.25})
    (content,) = read_wandb(tmp_path / "run")
    assert content.count(b"train/loss") >= 3
    assert content.count(b"train/grad_norm") >= 3
    for text in (b"dev/accuracy", b"1.25", b"0.25", b"seed", PROJECT.encode()):
        assert text in content
    assert capsys.readouterr().out == ""


def test_trackio_gets_every_number_and_says_nothing_on_standard_output(
    tmp_path, capsys, read_trackio
):
    with open_log(tmp_path / "run", ["trackio"]) as log:
        log.write(0, "train", NUMBERS)
        log.write(3, "dev", {"accuracy": 0.25})
    (first, _, trained), (second, step, judged) = read_trackio()
    assert first == second
    assert trained == {"train/loss": 0.5, "train/grad_norm": 1.25}
    assert (step, judged) == (3, {"dev/accuracy": 0.25})
    assert capsys.readouterr().out == ""


def test_a_resumed_run_is_the_same_one_and_a_new_run_another(tmp_path, read_trackio):
    for step in (0, 1, 0):
        with open_log(tmp_path / "run", ["trackio"], step) as log:
            log.write(step, "train", NUMBERS)
    names = [name for name, _, _ in read_trackio()]
    assert names[0] == names[1] != names[2]


def test_all_trackers_of_a_run_know_it_by_one_name_and_keep_it(tmp_path, read_trackio):
    for step in (0, 1):
        with open_log(tmp_path / "run", ["wandb", "trackio"], step) as log:
            log.write(step, "train", NUMBERS)
    own = (tmp_path / "run" / "tracker-id").read_text().strip()
    assert {name for name, _, _ in read_trackio()} == {f"run-{own}"}
    files = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    assert {file.name for file in files} == {f"run-{own}.wandb"}


def test_without_a_name_the_project_is_ours(tmp_path, trackio_folder):
    with open_log(tmp_path / "run", ["trackio"]) as log:
        log.write(0, "train", NUMBERS)
    assert (trackio_folder / f"{PROJECT}.db").is_file()


def test_runs_that_train_together_are_runs_of_their_own(tmp_path, short_words, read_trackio):
    words = short_words[: short_words.index("--seed")]
    folder = tmp_path / "several"
    words += ["--seeds", "7,8", "--output-dir", str(folder)]
    train.main([*words, "--report-to", "wandb", "trackio", "tensorboard"])
    rows = read_trackio()
    assert {name.rpartition("-")[0] for name, _, _ in rows} == {"several/seed-7", "several/seed-8"}
    for seed in ("seed-7", "seed-8"):
        lines = map(json.loads, (folder / seed / "metrics.jsonl").read_text().splitlines())
        losses = [line["loss"] for line in lines if line["split"] == "train"]
        told = [n["train/loss"] for name, _, n in rows if seed in name and "train/loss" in n]
        assert told == losses
        (content,) = read_wandb(folder / seed)
        assert content.count(b"train/loss") >= len(losses)
        assert list((folder / seed / "tensorboard").glob("events*"))


def test_a_service_that_fails_is_said_once_and_the_log_is_whole(tmp_path, capsys):
    with open_log(tmp_path / "run", ["wandb"]) as log:
        log.write(0, "train", NUMBERS)
        (tracker,) = log._trackers
        tracker._run.finish()  # as if the service had ended it: later calls raise
        for step in range(1, 5):
            log.write(step, "train", NUMBERS)
    assert capsys.readouterr().err.count("--report-to wandb ends here") == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 5


LOGIN = """
from pathlib import Path
from increlora_jax.training.trackers import Tracked, open_trackers
open_trackers(["wandb"], Tracked(Path.cwd(), "run", 0, {}))
"""


def test_without_a_login_it_says_how_to_log_in(tmp_path):
    """In a process of its own, as the package remembers its first mode."""
    keys = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", LOGIN],
        cwd=tmp_path,
        env=keys | {"HOME": str(tmp_path)},  # without a .netrc
        capture_output=True,
        text=True,
        check=False,
    )
    assert "InputError: report_to wandb: " in done.stderr
    assert "set WANDB_MODE=offline" in done.stderr


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_without_its_package_it_says_what_to_install(name, monkeypatch):
    package = {"tensorboard": "tensorboardX"}.get(name, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"pip install 'increlora_jax\[{name}\]'"):
        check_trackers([name])


def test_that_is_said_before_anything_is_loaded(short_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(SystemExit):
        train.main([*short_run, "--report-to", "tensorboard", "--data-dir", str(tmp_path / "none")])
    assert "--report-to tensorboard needs tensorboardX" in capsys.readouterr().err


def test_none_is_no_tracker_and_excludes_others(tmp_path):
    assert open_trackers(["none"], Tracked(tmp_path, "run", 0, {})) == []
    with pytest.raises(InputError, match="--report-to none excludes the others"):
        check_trackers(["none", "wandb"])

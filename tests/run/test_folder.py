"""What is seen in a run's folder, and who may write to it."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from increlora_jax.config import RunConfig, TaskConfig, TrainingConfig
from increlora_jax.errors import InputError, WriteError
from increlora_jax.run.command_line import read_run, write_run
from increlora_jax.run.folder import (
    OF_A_RUN,
    Held,
    check_identity,
    clear,
    locked,
    look_into,
    read_results,
    write_results,
)
from increlora_jax.run.sweep import members_of

CONFIG = RunConfig()
RESULTS = {
    "identity": {"data": "abc"},
    "metrics": {"accuracy": 0.5},
    "rank_budget": None,
    "total_rank": 0,
    "full_modules": [],
    "seconds": 1.5,
}


def with_training(**changes):
    return RunConfig(training=TrainingConfig(**changes))


@pytest.fixture
def begun(tmp_path):
    """The folder of a run that has begun."""
    folder = tmp_path / "run"
    folder.mkdir()
    clear(folder, CONFIG)
    return folder


def test_how_far_a_run_has_come_is_told_by_its_files(tmp_path, begun):
    assert look_into(tmp_path / "none", CONFIG) is Held.NOTHING
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("the user's own")
    assert look_into(tmp_path / "empty", CONFIG) is Held.NOTHING
    assert look_into(begun, CONFIG) is Held.BEGUN
    write_results(begun, RESULTS)
    assert look_into(begun, CONFIG) is Held.FINISHED


def test_what_may_be_overwritten_counts_for_nothing(begun):
    write_results(begun, RESULTS)
    assert look_into(begun, with_training(overwrite_output_dir=True)) is Held.NOTHING


@pytest.mark.parametrize("name", OF_A_RUN)
def test_a_run_that_is_not_to_be_resumed_is_refused_with_what_is_there(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=rf"already holds a run \({name}\). Choose another"):
        look_into(tmp_path, with_training(resume=False))


def test_a_folder_without_settings_is_nobodys_run(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match=r"already holds a run \(results.json\)"):
        look_into(tmp_path, CONFIG)


def test_settings_that_differ_are_named_with_both_values(begun):
    other = replace(
        CONFIG, task=TaskConfig(task="mrpc", model="x"), training=TrainingConfig(seed=1)
    )
    with pytest.raises(
        InputError, match=r"task \(saved sst2, given mrpc\), seed \(saved 42, given 1"
    ):
        look_into(begun, other)
    free = replace(CONFIG, task=TaskConfig(model="elsewhere", data_dir="moved"))
    assert look_into(begun, free) is Held.BEGUN


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(InputError, match="run is a file"):
        look_into(tmp_path / "run", CONFIG)


@pytest.mark.parametrize("overwrites", [False, True])
def test_what_is_in_the_way_of_checkpoints_is_named_before_the_first_step(begun, overwrites):
    config = with_training(overwrite_output_dir=overwrites)
    shutil.rmtree(begun / "checkpoints", ignore_errors=True)
    (begun / "checkpoints").touch()
    with pytest.raises(InputError, match=r"is a file, not a folder\. Move it away"):
        look_into(begun, config)
    (begun / "checkpoints").unlink()
    (begun / "checkpoints").symlink_to("nowhere")
    with pytest.raises(InputError, match="checkpoints is a file, not a folder"):
        look_into(begun, config)


def test_a_file_where_a_parent_should_be_is_named(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(WriteError, match=r"run cannot be written: .*data is a file"):
        look_into(tmp_path / "data" / "run", CONFIG)


def test_what_was_made_of_something_else_is_refused_with_both_identities():
    here = {"data": "abc", "labels": "x"}
    check_identity("it", here | {"more": "z"}, here)
    with pytest.raises(
        InputError, match=r"^it was created with other inputs: data \(saved def, given ab"
    ):
        check_identity("it", {"data": "def", "labels": "x"}, here)
    with pytest.raises(InputError, match=r"labels \(saved None, given x\)"):
        check_identity("it", {"data": "abc"}, here)


def test_a_second_writer_is_kept_out_until_the_first_is_done(tmp_path):
    folder = tmp_path / "a" / "run"
    is_taken = pytest.raises(InputError, match="another process is at work")
    with locked(folder), is_taken, locked(folder):
        pass
    with locked(folder):
        pass


def test_the_lock_ends_with_its_process(tmp_path):
    hold = (
        "import os, sys; from pathlib import Path; from increlora_jax.run.folder import locked\n"
        "with locked(Path(sys.argv[1])): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", hold, tmp_path], check=False).returncode == 9
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_of_and_used(tmp_path, monkeypatch, capsys, code):
    monkeypatch.setattr(fcntl, "flock", fail_with(OSError(code, os.strerror(code))))
    with locked(tmp_path):
        assert f"{tmp_path}/.lock cannot be locked ({os.strerror(code)})" in capsys.readouterr().err


@pytest.mark.parametrize("code", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_that_somebody_has_is_refused(tmp_path, monkeypatch, code):
    monkeypatch.setattr(fcntl, "flock", fail_with(OSError(code, os.strerror(code))))
    with pytest.raises(InputError, match="another process is at work"), locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_an_error_of_writing(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(WriteError, match=r"file/run cannot be written"),
        locked(tmp_path / "file/run"),
    ):
        pass


def test_clearing_leaves_the_settings_and_what_is_not_a_runs(begun):
    for name in ("adapter", ".adapter.old", ".adapter-best.new", "adapter-best", "checkpoints/3"):
        (begun / name).mkdir(parents=True)
        (begun / name / "file").write_text("x")
    for name in ("results.json", ".results.json.new", "metrics.jsonl", "mine.txt"):
        (begun / name).write_text("x")
    config = with_training(seed=9)
    clear(begun, config)
    assert sorted(path.name for path in begun.iterdir()) == ["config.yaml", "mine.txt"]
    assert read_run(begun / "config.yaml") == config


def test_clearing_takes_the_settings_first(begun, monkeypatch):
    write_results(begun, RESULTS)
    removed = []
    monkeypatch.setattr(os, "unlink", lambda path: removed.append(os.path.basename(path)))
    clear(begun, CONFIG)
    assert removed[0] == "config.yaml"


def test_what_cannot_be_cleared_is_an_error_of_writing(begun, monkeypatch):
    def refuse(path):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(WriteError, match=rf"--output-dir {begun} cannot be written: .*denied"):
        clear(begun, CONFIG)
    monkeypatch.undo()
    assert look_into(begun, CONFIG) is Held.BEGUN


def test_results_are_read_as_they_were_written(tmp_path):
    results = RESULTS | {"versions": {"python": "3"}, "metrics": {"pearson": -0.25}}
    write_results(tmp_path, results)
    assert read_results(tmp_path) == results
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "results.json:1: not valid JSON"),
        ("[]", "results.json: holds no JSON object"),
        ("{}", "'identity' is missing"),
        (json.dumps(RESULTS | {"metrics": [1]}), r"metrics is \[1\] where dict"),
    ],
)
def test_damaged_results_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_results(tmp_path)


def test_results_that_cannot_be_written_leave_the_old_ones(tmp_path, monkeypatch):
    write_results(tmp_path, RESULTS)
    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail_with(OSError(errno.EXDEV, os.strerror(errno.EXDEV))))
            with pytest.raises(WriteError, match=rf"{tmp_path}/results.json cannot be written"):
                write_results(tmp_path, RESULTS | {"seconds": 2.0})
        assert read_results(tmp_path) == RESULTS
        assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def fail_with(error):
    def function(*_):
        raise error

    return function


def test_the_settings_of_a_run_are_written_whole(begun):
    before = (begun / "config.yaml").read_bytes()
    write_run(CONFIG, begun / "again.yaml")
    assert (begun / "again.yaml").read_bytes() == before
    shutil.copy(begun / "again.yaml", begun / ".config.yaml.new")  # as a kill would leave it
    clear(begun, CONFIG)
    assert not (begun / ".config.yaml.new").exists()


def test_runs_that_train_together_have_folders_and_settings_of_their_own(tmp_path):
    config = with_training(seeds="1,2", output_dir=str(tmp_path))
    clear(tmp_path, config)
    assert read_run(tmp_path / "config.yaml") == config
    for member in members_of(config):
        assert read_run(tmp_path / member.name / "config.yaml") == member.config
    assert look_into(tmp_path, config) is Held.BEGUN
    write_results(tmp_path / "seed-1", RESULTS)
    assert look_into(tmp_path, config) is Held.BEGUN
    write_results(tmp_path, {"identity": {}, "summary": "x", "seconds": 1.0})
    assert look_into(tmp_path, config) is Held.FINISHED
    assert read_results(tmp_path)["summary"] == "x"


def test_clearing_takes_what_other_runs_have_left_and_nothing_else(tmp_path):
    clear(tmp_path, with_training(seeds="1,2"))
    (tmp_path / "seed-1" / "mine.txt").write_text("x")
    (tmp_path / "seed-9").mkdir()
    (tmp_path / "seed-9" / "config.yaml").write_text("another run's")
    clear(tmp_path, with_training(seeds="2,3"))
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    left = {folder.name: {path.name for path in folder.iterdir()} for folder in folders}
    assert left == {
        "seed-1": {"mine.txt"},
        "seed-2": {"config.yaml"},
        "seed-3": {"config.yaml"},
        "seed-9": {"config.yaml"},
    }


def test_what_is_cleared_need_not_be_sound(tmp_path):
    (tmp_path / "config.yaml").write_text("seeds: [")
    clear(tmp_path, with_training(seeds="1,2"))
    assert read_run(tmp_path / "seed-2" / "config.yaml").training.seed == 2

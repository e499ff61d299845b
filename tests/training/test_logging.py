"""What a run tells, read back from its files."""

import json
import sys

import pytest

from increlora_jax.errors import InputError
from increlora_jax.training.logging import METRICS_FILE, RunLog

NUMBERS = {"loss": 0.5, "total_rank": 12, "grad_norm": 2.0}
SPEED = 100.0


def read(folder):
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_steps_and_evaluations_are_lines(tmp_path):
    with RunLog(tmp_path, 3, tensorboard=False) as log:
        log.step(0, NUMBERS, SPEED, is_written=True)
        log.step(1, NUMBERS, SPEED, is_written=False)
        log.evaluation(2, {"accuracy": 0.25})
    assert read(tmp_path) == [
        {"step": 0, "split": "train", **NUMBERS},
        {"step": 2, "split": "dev", "accuracy": 0.25},
    ]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with RunLog(tmp_path, 3, tensorboard=False) as log:
        log.step(0, NUMBERS, SPEED, is_written=True)
        assert len(read(tmp_path)) == 1


def test_the_bar_shows_loss_rank_and_speed(tmp_path, capsys):
    with RunLog(tmp_path, 2, tensorboard=False) as log:
        log.step(0, NUMBERS, SPEED, is_written=False)
        log.step(1, NUMBERS, SPEED, is_written=False)
        log.say("a line between")
    said = capsys.readouterr()
    assert "loss=0.5000, rank=12, tokens=100/s" in said.err
    assert "2/2" in said.err
    assert "a line between" in said.out


def test_the_files_are_closed_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), RunLog(tmp_path, 2, tensorboard=False) as log:
        raise RuntimeError
    with pytest.raises(ValueError, match="closed file"):
        log.step(0, NUMBERS, SPEED, is_written=True)


def test_tensorboard_holds_the_same_numbers(tmp_path):
    with RunLog(tmp_path, 1, tensorboard=True) as log:
        log.step(0, NUMBERS, SPEED, is_written=True)
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert b"train/grad_norm" in events.read_bytes()


def test_tensorboard_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"pip install 'increlora_jax\[tensorboard\]'"):
        RunLog(tmp_path, 1, tensorboard=True)


def test_a_silent_log_writes_and_says_nothing(tmp_path, capsys):
    with RunLog(tmp_path, 3, tensorboard=True, kept_bytes=100, is_silent=True) as log:
        log.step(0, NUMBERS, SPEED, is_written=True)
        log.evaluation(1, {"accuracy": 0.25})
        assert log.sync() == 0
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr()
    assert not said.out + said.err

"""What a run tells, read back from its files."""

import json

import pytest

from increlora_jax.training.logging import METRICS_FILE, Bar, RunLog

NUMBERS = {"loss": 0.5, "total_rank": 12, "grad_norm": 2.0}


def read(folder):
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_steps_and_evaluations_are_lines(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        log.write(0, "train", NUMBERS)
        log.write(2, "dev", {"accuracy": 0.25})
    assert read(tmp_path) == [
        {"step": 0, "split": "train", **NUMBERS},
        {"step": 2, "split": "dev", "accuracy": 0.25},
    ]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        log.write(0, "train", NUMBERS)
        assert len(read(tmp_path)) == 1


def test_the_bar_shows_loss_rank_and_speed(capsys):
    with Bar(2) as bar:
        bar.step([0.5], [12], 100.0)
        bar.step([0.5], [12], 100.0)
        bar.say("a line between")
    said = capsys.readouterr()
    assert "loss=0.5000, rank=12, tokens=100/s" in said.err
    assert "2/2" in said.err
    assert "a line between" in said.out


def test_of_several_runs_the_bar_shows_the_mean_loss_and_the_span_of_ranks(capsys):
    with Bar(1) as bar:
        bar.step([0.5, 1.0], [16, 12], 100.0)
    assert "loss=0.7500, rank=12-16" in capsys.readouterr().err


def test_the_files_are_closed_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), RunLog(tmp_path, tensorboard=False) as log:
        raise RuntimeError
    with pytest.raises(ValueError, match="closed file"):
        log.write(0, "train", NUMBERS)


def test_what_is_silent_writes_and_says_nothing(tmp_path, capsys):
    with RunLog(tmp_path, tensorboard=True, kept_bytes=100, is_silent=True) as log:
        log.write(0, "train", NUMBERS)
        assert log.sync() == 0
    with Bar(3, is_silent=True) as bar:
        bar.step([0.5], [12], 100.0)
        bar.say("a line between")
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr()
    assert not said.out + said.err

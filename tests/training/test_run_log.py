"""What a run tells, read back from its files."""

import json

import pytest

from increlora_jax.training.run_log import METRICS_FILE, RunLog

NUMBERS = {"loss": 0.5, "total_rank": 12, "grad_norm": 2.0}


def read(folder):
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_steps_and_evaluations_are_lines(tmp_path):
    with RunLog(tmp_path) as log:
        log.write(0, "train", NUMBERS)
        log.write(2, "dev", {"accuracy": 0.25})
    assert read(tmp_path) == [
        {"step": 0, "split": "train", **NUMBERS},
        {"step": 2, "split": "dev", "accuracy": 0.25},
    ]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with RunLog(tmp_path) as log:
        log.write(0, "train", NUMBERS)
        assert len(read(tmp_path)) == 1


def test_the_files_are_closed_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), RunLog(tmp_path) as log:
        raise RuntimeError
    with pytest.raises(ValueError, match="closed file"):
        log.write(0, "train", NUMBERS)


def test_what_is_silent_writes_and_says_nothing(tmp_path, capsys):
    with RunLog(tmp_path, kept_bytes=100, is_silent=True) as log:
        log.write(0, "train", NUMBERS)
        assert log.sync() == 0
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr()
    assert not said.out + said.err

"""TensorBoard files, and disks that take none."""

import errno
import os

import pytest

from increlora_jax.training.board import Board
from increlora_jax.training.run_log import RunLog

NUMBERS = {"loss": 0.5, "grad_norm": 1.25, "total_rank": 12}


def read_events(folder):
    """What is in a folder's one file: of every record, the event."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.glob("events*")
    content, events = file.read_bytes(), []
    while content:  # length, its checksum, the event, its checksum
        length = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events


def test_it_holds_the_numbers_of_every_step(tmp_path):
    with RunLog(tmp_path, trackers=[Board(tmp_path / "tensorboard", 3)]) as log:
        log.write(3, "train", NUMBERS)
        log.write(4, "dev", {"accuracy": 0.25})
        version, _, start, first, second = read_events(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (3, start.session_log.START)
    told = {value.tag: value.simple_value for value in first.summary.value}
    assert told == {f"train/{name}": value for name, value in NUMBERS.items()}
    assert second.step == 4


def replace_by_full_disk(file):
    """Let whoever has a file open write to a disk without room."""
    with open("/dev/full", "wb") as full:
        for name in os.listdir("/proc/self/fd"):
            if os.path.realpath(f"/proc/self/fd/{name}") == str(file):
                os.dup2(full.fileno(), int(name))


@pytest.mark.parametrize("is_full_at_first", [True, False])
def test_a_full_disk_is_said_once_and_the_log_goes_on(
    tmp_path, capsys, monkeypatch, is_full_at_first
):
    folder = tmp_path / "tensorboard"
    if is_full_at_first:
        folder.write_text("a file where a folder has to be")
    with RunLog(tmp_path, trackers=[Board(folder, 0)]) as log:
        log.write(0, "train", NUMBERS)
        if not is_full_at_first:
            (file,) = folder.glob("events*")
            replace_by_full_disk(file)
        for step in range(1, 30):
            log.write(step, "train", NUMBERS)
    said = capsys.readouterr().err
    assert said.count("TensorBoard's files end here") == 1
    reason = errno.EEXIST if is_full_at_first else errno.ENOSPC
    assert os.strerror(reason) in said
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 30

"""How commands end: a line, and a status for each kind of end."""

import os
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from increlora_jax.errors import InputError, NonFiniteError, OutOfMemoryError, WriteError
from increlora_jax.runtime.ending import TRACEBACK, fail_clearly


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("mend it"), 2),
        (NonFiniteError("bad"), 3),
        (WriteError("no room"), 4),
        (OutOfMemoryError("too large"), 5),
    ],
)
def test_what_ends_a_command_is_said_in_a_line_with_its_status(capsys, error, status):
    with pytest.raises(SystemExit) as end, fail_clearly():
        raise error
    assert end.value.code == status
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_message_of_several_lines_is_said_in_one(capsys):
    with pytest.raises(SystemExit), fail_clearly():
        raise InputError("a\nb")
    assert capsys.readouterr().err == "error: a b\n"


def fail(error, folder):
    with fail_clearly() as ending:
        ending.folder = folder
        raise error


def test_a_bug_is_a_line_and_its_traceback_is_kept_in_the_runs_folder(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        fail(KeyError("x"), tmp_path)
    assert end.value.code == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: internal error: KeyError: 'x'")
    assert str(tmp_path / TRACEBACK) in said
    assert "in fail\n    raise error\n" in (tmp_path / TRACEBACK).read_text()


@pytest.mark.parametrize("has_folder", [True, False])
def test_a_traceback_without_a_runs_folder_is_kept_elsewhere(
    tmp_path, capsys, monkeypatch, has_folder
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if has_folder:  # where no file can be written
        (tmp_path / "none" / TRACEBACK).mkdir(parents=True)
    with pytest.raises(SystemExit):
        fail(RecursionError("too deep"), tmp_path / "none")
    (kept,) = tmp_path.glob("increlora-*.txt")
    assert str(kept) in capsys.readouterr().err
    assert "RecursionError: too deep" in kept.read_text()


def test_a_traceback_that_no_file_takes_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(SystemExit) as end, fail_clearly():
        raise KeyError("x")
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert 'raise KeyError("x")' in said
    assert said.splitlines()[-1].startswith("error: internal error: KeyError: 'x'")


def test_a_bug_shows_itself_where_that_is_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("INCRELORA_DEBUG", "1")
    with pytest.raises(KeyError), fail_clearly():
        raise KeyError("x")
    assert capsys.readouterr().err == ""


def test_memory_that_lacks_is_no_bug(capsys):
    with pytest.raises(SystemExit) as end, fail_clearly():
        np.zeros(1 << 60, np.uint8)
    assert end.value.code == 5
    assert capsys.readouterr().err.startswith("error: out of memory (Unable to allocate 1.00 EiB")


def test_a_status_of_ones_own_is_left_alone():
    with pytest.raises(SystemExit) as end, fail_clearly():
        raise SystemExit(7)
    assert end.value.code == 7


STOP = """
import signal, sys
from increlora_jax.runtime.ending import fail_clearly
from increlora_jax.runtime.signals import Preempted
print("told before", end="")
with fail_clearly("; go on"):
    raise eval(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ("Preempted(signal.SIGTERM)", 143, "stopped by SIGTERM; go on\n"),
        ("Preempted(signal.SIGUSR1)", 138, "stopped by SIGUSR1; go on\n"),
        ("KeyboardInterrupt", 130, "stopped by SIGINT; go on\n"),
    ],
)
def test_a_signal_leaves_with_its_own_status(error, status, said):
    done = subprocess.run(
        [sys.executable, "-c", STOP, error], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr, done.stdout) == (status, said, "told before")


BEGIN = """
import os, sys, time
from increlora_jax.runtime.start import begin
begin()
assert not {"jax", "numpy", "flax"} & set(sys.modules)  # so that it comes before them
os.write(1, b"begun")
time.sleep(60)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_during_the_imports_is_a_line(signum):
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.read(process.stdout.fileno(), 5)
    process.send_signal(signum)
    _, said = process.communicate(timeout=50)
    assert process.returncode == 128 + signum
    assert said.decode() == f"stopped by {signum.name}\n"

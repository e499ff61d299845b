"""What commands write to the terminal, into a log and to standard output."""

import io
import os
import pty
import re
import subprocess
import sys
import termios
import time
from contextlib import redirect_stderr, suppress

import pytest

from increlora_jax.runtime import console
from increlora_jax.runtime.console import Bar, announced, counted, prints_apart, say
from increlora_jax.runtime.streams import write_result

STEP = re.compile(r"step (\d+) of 14: loss \d+\.\d{4}, rank \d+")

WITHOUT_TORCH = """
import importlib.util as util
find = util.find_spec
util.find_spec = lambda name, package=None: None if name == "torch" else find(name, package)
"""

TWO_STEPS = """
from increlora_jax.runtime.console import Bar
with Bar(2) as bar:
    bar.step([0.5], [12], 100.0)
    bar.say("grows")
    bar.step([0.5], [12], 100.0)
"""


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr(console, "PATIENCE", 0.0)


def command(words, **environment):
    """The training command as a process of its own."""
    env = {**os.environ, "TERM": "xterm", **environment}
    return [sys.executable, "-m", "increlora_jax.train", *words], env


def test_on_a_terminal_a_bar_shows_loss_rank_and_speed(screen, capsys):
    with redirect_stderr(screen), Bar(2) as bar:
        bar.step([0.5], [12], 100.0)
        bar.step([0.5, 1.0], [16, 12], 100.0)
        bar.say("a line between")
    said = screen.getvalue()
    assert "loss=0.7500, rank=12-16, tokens=100/s" in said
    assert "2/2" in said
    assert "a line between\n" in said
    assert capsys.readouterr().out == ""


def test_in_a_log_the_first_and_the_last_step_are_lines(capsys):
    with Bar(13, step=10) as bar:
        for _ in range(3):
            bar.step([0.5], [12], 100.0)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "step 11 of 13: loss 0.5000, rank 12, 100 tokens/s"
    assert last == "step 13 of 13: loss 0.5000, rank 12, 100 tokens/s, 00:00 left"


def test_in_a_log_there_is_a_line_every_period(capsys, monkeypatch):
    monkeypatch.setattr(console, "PERIOD", 0.0)
    with Bar(9) as bar:
        for _ in range(9):
            bar.step([0.5], [12], 100.0)
    assert len(capsys.readouterr().err.splitlines()) == 9


@pytest.mark.parametrize("name", ["dumb", None])
def test_a_terminal_without_a_cursor_is_a_log(screen, monkeypatch, name):
    monkeypatch.delenv("TERM") if name is None else monkeypatch.setenv("TERM", name)
    with redirect_stderr(screen), Bar(1) as bar:
        bar.step([0.5], [12], 100.0)
    assert screen.getvalue() == "step 1 of 1: loss 0.5000, rank 12, 100 tokens/s\n"


def test_a_silent_bar_says_nothing(capsys):
    with Bar(3, is_silent=True) as bar:
        bar.step([0.5], [12], 100.0)
        bar.say("a line between")
    said = capsys.readouterr()
    assert not said.out + said.err


@pytest.mark.usefixtures("_impatient")
def test_long_work_is_announced_and_timed(capsys):
    with announced("compiling the step"):
        time.sleep(0.1)
    begun, done = capsys.readouterr().err.splitlines()
    assert begun == "compiling the step …"
    assert re.fullmatch(r"compiling the step took \d+\.\d s", done)


@pytest.mark.usefixtures("_impatient")
def test_of_work_that_fails_no_time_is_told(capsys):
    with suppress(RuntimeError), announced("compiling the step"):
        time.sleep(0.1)
        raise RuntimeError
    assert capsys.readouterr().err == "compiling the step …\n"


@pytest.mark.usefixtures("_impatient")
def test_long_work_is_counted(capsys):
    with counted("tokenizing", 500, "train examples") as advance:
        advance(256)
        advance(244)
    assert capsys.readouterr().err == "tokenizing 256 of 500 train examples\n"


@pytest.mark.usefixtures("_impatient")
def test_on_a_terminal_the_count_is_a_bar_that_goes_when_done(screen):
    with redirect_stderr(screen), counted("tokenizing", 500, "train examples") as advance:
        time.sleep(0.2)
        advance(256)
    assert "256/500" in screen.getvalue()
    assert "\n" not in screen.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_short_work_is_not_mentioned(stream):
    with redirect_stderr(stream), announced("compiling"), counted("tokenizing", 9, "x") as advance:
        advance(9)
    assert stream.getvalue() == ""


def test_prints_of_others_do_not_reach_the_results(capsys):
    with prints_apart():
        print("a library's word")  # noqa: T201
        say("progress")
    write_result("the result")
    said = capsys.readouterr()
    assert said.out == "the result\n"
    assert said.err == "a library's word\nprogress\n"


def test_a_result_goes_to_a_terminal_that_lacks_its_letters(monkeypatch):
    bytes_written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_written, encoding="ascii"))
    write_result("0.9 ± 0.1")
    assert bytes_written.getvalue() == b"0.9 +- 0.1\n"


def test_a_log_has_our_lines_alone_and_standard_output_the_result(short_run, tmp_path):
    """Without PyTorch, of which Transformers warns."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TORCH, encoding="utf-8")
    words, env = command(short_run, PYTHONPATH=str(tmp_path), TRANSFORMERS_VERBOSITY="warning")
    ended = subprocess.run(words, capture_output=True, env=env, timeout=300, check=False)
    said = ended.stderr.decode()
    assert ended.returncode == 0, said
    assert not set(said) & {"\r", "\x1b"}
    steps = [int(step) for step in STEP.findall(said)]
    assert (steps[0], steps[-1]) == (1, 14)
    assert "step 2: grows to total rank 16 of 24\n" in said
    assert re.search(r"^step 12: accuracy 0\.\d+$", said, re.MULTILINE)
    ours = r"increlora: |note: |trainable parameters: |step \d+|compiling |evaluating |tokenizing "
    assert [line for line in said.splitlines() if not re.match(ours, line)] == []
    (result,) = ended.stdout.decode().splitlines()
    assert result.startswith("accuracy 0.")


@pytest.mark.parametrize("size", [None, (24, 100)])
def test_a_terminal_has_a_bar_and_one_of_unknown_size_too(size):
    ours, theirs = pty.openpty()
    if size:
        termios.tcsetwinsize(theirs, size)
    command = [sys.executable, "-c", TWO_STEPS]
    env = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=env) as process:
        os.close(theirs)
        screen = b""
        with suppress(OSError):  # the other end is closed
            while read := os.read(ours, 65536):
                screen += read
        output = process.stdout.read()
    os.close(ours)
    assert b"2/2" in screen
    assert b"\rgrows" in screen.replace(b" ", b"")
    assert not STEP.search(screen.decode())
    assert output == b""

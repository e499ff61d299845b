"""Standard streams that nobody reads, that are closed, or that are full."""

import os
import subprocess
import sys

import pytest

from increlora_jax.errors import WriteError
from increlora_jax.runtime.streams import tell, write_result

PROGRAM = """
import sys
from increlora_jax.runtime.ending import fail_clearly
from increlora_jax.runtime.start import begin
from increlora_jax.runtime.streams import tell, write_result
begin()
with open(sys.argv[1], "w") as log, fail_clearly():
    for at in range(3):
        tell("note " * 2000)
        sys.stderr.write("a library's own words")
        write_result("result " * 2000)
    log.write("the end")
"""


@pytest.mark.parametrize(
    ("streams", "status"),
    [
        (">&- 2>&-", 0),
        ("2>&-", 0),
        (">/dev/null 2>/dev/full", 0),
        (">/dev/full 2>/dev/null", 4),
        ("2>/dev/null | head -c 0", 0),
        ("2>&1 | head -n 1", 0),
        ("</dev/null 0<&-", 0),
    ],
)
def test_a_command_outlives_its_streams(tmp_path, streams, status):
    log = tmp_path / "log"
    script = f'set -o pipefail; {sys.executable} -c "$PROGRAM" {log} {streams}'
    done = subprocess.run(
        ["bash", "-c", script],
        env=os.environ | {"PROGRAM": PROGRAM},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout
    assert "Exception ignored" not in done.stderr + done.stdout
    assert done.returncode == status
    # Nothing that was meant for a stream is in a file that has taken its number.
    assert log.read_text() == ("" if status else "the end")


def test_what_is_told_and_what_results(capsys):
    tell("a note")
    write_result("a result")
    assert capsys.readouterr() == ("a result\n", "a note\n")


def test_a_result_that_no_disk_takes_is_an_error(monkeypatch):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(WriteError, match=r"standard output cannot be written: .*No space left"):
            write_result("a result")


def test_letters_that_a_terminal_lacks_are_spelt_or_escaped():
    program = (
        "import sys; from increlora_jax.runtime.streams import *\n"
        "write_result('12 → 48 ± γ… ü→ü \\udcff')\n"
        "accept_any_text(); tell('α × β')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "12 -> 48 +- gamma... \\xfc->\\xfc \\udcff\n"
    assert done.stderr == "alpha x beta\n"

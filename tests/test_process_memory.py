"""Counted in page faults, which the machine's other work does not change."""

import platform
import subprocess
import sys

import pytest

from increlora_jax.process_memory import keep_freed_memory

TIMES, MIB = 5, 300
PAGES = MIB * 2**20 // 4096
PROGRAM = f"""
import resource
import sys

from increlora_jax.process_memory import keep_freed_memory
from increlora_jax.train import main

if sys.argv[1] == "keep":
    assert keep_freed_memory()
elif sys.argv[1] == "command":
    try:
        main(["--top-h", "0"])  # ends at once
    except SystemExit:
        pass


def take_and_free():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * ({MIB} * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


take_and_free()
print(sum(take_and_free() for _ in range({TIMES})))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to")
def test_what_was_freed_is_taken_again_without_a_fault():
    def faults(word):
        command = [sys.executable, "-c", PROGRAM, word]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("leave") >= TIMES * PAGES
    assert faults("keep") < PAGES // 10
    assert faults("command") < PAGES // 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()

"""What of it the machine's other work does not change: page faults, pages held, what is ready."""

import platform
import subprocess
import sys

import pytest

from increlora_jax.runtime.memory import keep_freed_memory, return_freed_memory

TIMES, MIB = 5, 300
PAGES = MIB * 2**20 // 4096
PROGRAM = f"""
import resource
import sys

from increlora_jax.runtime.memory import keep_freed_memory
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

RETURNING = f"""
import re

from increlora_jax.runtime.memory import keep_freed_memory, return_freed_memory


def held():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024


keep_freed_memory()
blocks = [b"x" * 2**20 for _ in range({MIB})]
above = b"x" * 2**20  # what lies below it is not given back by itself
full = held()
blocks.clear()
kept = held()
return_freed_memory()
print(full, kept, held())
"""

DISPATCHING = """
import sys

import jax.numpy as jnp

from increlora_jax.runtime.memory import dispatch_synchronously
from increlora_jax.train import main

if sys.argv[1] == "function":
    dispatch_synchronously()
elif sys.argv[1] == "command":
    try:
        main(["--top-h", "0"])  # ends at once
    except SystemExit:
        pass

print((jnp.ones((3000, 3000)) @ jnp.ones((3000, 3000))).is_ready())
"""

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc can be told to"
)


@needs_glibc
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
    return_freed_memory()  # finds nothing to do


@pytest.mark.parametrize(
    ("word", "is_ready"), [("neither", "False"), ("function", "True"), ("command", "True")]
)
def test_a_call_returns_when_its_computation_is_done(word, is_ready):
    command = [sys.executable, "-c", DISPATCHING, word]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert told.split() == [is_ready]


@needs_glibc
def test_what_is_free_goes_back_when_asked_for():
    command = [sys.executable, "-c", RETURNING]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    full, kept, left = map(int, told.split())
    assert kept > full - MIB // 10
    assert left < full - MIB * 9 // 10

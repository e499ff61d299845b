"""Messages name what their reader can set: flags in a command, arguments in Python."""

import subprocess
import sys

import pytest

from increlora_jax.errors import InputError, as_arguments, naming_flags


@pytest.mark.parametrize(("message", "wanted"), [
    ("--top-h 0 must be at least 1", "top_h 0 must be at least 1"),
    ("Raise --max-rank (or --max-rank exact)", "Raise max_rank (or max_rank exact)"),
    ("Raise --max-steps (or --num-train-epochs)", "Raise steps"),
    ("leave out --no-growth", "leave out growth=False"),
    ("a file --x.txt, 3 -- 4 and a-b stay", "a file x.txt, 3 -- 4 and a-b stay"),
    ("pip install -e .", "pip install -e ."),
])  # fmt: skip
def test_flags_become_arguments(message, wanted):
    assert as_arguments(message) == wanted


def test_the_way_of_naming_ends_with_its_block(monkeypatch):
    monkeypatch.setattr("increlora_jax.errors._has_flags", False)
    with naming_flags():
        assert str(InputError("--top-h 0")) == "--top-h 0"
    assert str(InputError("--top-h 0")) == "top_h 0"


CALLS = {
    "il.GrowthConfig(top_h=0)": "top_h 0 must be at least 1",
    "il.increlora(w, steps=9, growth=il.GrowthConfig(target_rank=9))": (
        "Raise max_rank (or max_rank exact) or lower target_rank"
    ),
    "il.lora(w, steps=9, growth=il.GrowthConfig(target_rank=2.5))": "must be whole for method lora",
}


def test_python_gets_arguments_and_a_command_gets_flags():
    code = "import increlora_jax as il, jax.numpy as jnp\nw = {'w': jnp.ones((4, 4))}\n"
    for call in CALLS:
        code += f"try:\n    {call}\nexcept il.InputError as error:\n    print(error)\n"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for line, wanted in zip(told.stdout.splitlines(), CALLS.values(), strict=True):
        assert wanted in line
        assert "--" not in line
    words = [sys.executable, "-m", "increlora_jax.train", "--task", "demo", "--top-h", "0"]
    command = subprocess.run(words, capture_output=True, text=True, check=False)
    assert command.stderr == "error: --top-h 0 must be at least 1\n"

"""The memory study's plan, which no GPU and no weights are needed for."""

import runpy
import sys
from pathlib import Path

STUDY = Path(__file__).parent.parent / "experiments" / "memory" / "measure.py"


def test_a_plan_is_compiled(monkeypatch, capsys):
    words = "plan --model tiny --layers 1 --batch 2 --length 8 --compile --quantize-base none"
    monkeypatch.setattr(sys, "argv", [str(STUDY), *words.split()])
    runpy.run_path(str(STUDY), run_name="__main__")
    head, line = capsys.readouterr().out.splitlines()
    assert head == "tiny, 2 × 8 tokens, bfloat16; GiB"
    words = line.split()
    assert words[:2] == ["none", "full"]
    assert {"base", "state", "kept", "step", "scored"} <= set(words)

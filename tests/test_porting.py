"""The example of a model port runs as its README prints it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "experiments" / "porting"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```bash\n(.*?)```", README, flags=re.S)


def run(command):
    command = command.replace("python ", f"{sys.executable} ", 1)
    return subprocess.run(
        ["bash", "-ec", command], cwd=ROOT, text=True, capture_output=True, check=False
    )


@pytest.mark.parametrize("command", COMMANDS, ids=["as printed", "with flags"])
def test_the_port_has_the_originals_logits_and_trains_two_steps(command):
    ended = run(command)
    assert ended.returncode == 0, ended.stderr
    first, second = ended.stdout.splitlines()
    assert first == "the logits are the original's"
    assert "total rank 3 of 3" in second
    assert "step 2 of 2: loss " in ended.stderr


def test_the_readme_prints_the_code_that_runs():
    code = (FOLDER / "dan.py").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(blocks) == 5
    assert [block for block in blocks if block not in code] == []

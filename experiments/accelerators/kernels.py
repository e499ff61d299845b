"""Registers, spills and shared memory of CUDA's kernels, as its assembler prints them."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OWN = ("_mix_kernel", "_query_kernel", "_key_kernel")
"""Names of this project's own kernels (`models.fused_attention`)."""

_KERNEL = re.compile(
    r"Compiling entry function '([^']+)'.*?"
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
    re.DOTALL,
)


@contextmanager
def listened() -> Iterator[Path]:
    """Write the assembler's remarks on each kernel to a file meanwhile, and give its path."""
    real, path = shutil.which("ptxas"), os.environ["PATH"]
    with tempfile.TemporaryDirectory() as folder:
        heard = Path(folder, "heard.txt")
        heard.touch()
        if real:
            script = Path(folder, "ptxas")
            script.write_text(f'#!/bin/sh\nexec "{real}" -v "$@" 2>>"{heard}"\n', encoding="utf-8")
            script.chmod(0o755)
            os.environ["PATH"] = f"{folder}{os.pathsep}{path}"
        try:
            yield heard
        finally:
            os.environ["PATH"] = path


def describe_kernels(text: str) -> dict[str, Any]:
    """Return the number of kernels, their most registers, and every kernel that spills."""
    found = read_kernels(text)
    return {
        "count": len(found),
        "registers": max((kernel["registers"] for kernel in found), default=0),
        "spilling": [kernel for kernel in found if kernel["spills"]],
        "own": [kernel for kernel in found if kernel["name"] in OWN],
    }


def read_kernels(text: str) -> list[dict[str, Any]]:
    """Return name, registers, bytes of spills and static shared memory of every kernel."""
    return [
        {
            "name": name,
            "registers": int(registers),
            "spills": int(stores) + int(loads),
            "shared": int(shared or 0),
        }
        for name, stores, loads, registers, shared in _KERNEL.findall(text)
    ]

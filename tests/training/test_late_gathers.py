"""Kernels that a mesh shards are gathered where a layer uses them, one layer at a time."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.late_gathers import LAYERS
from tests.meshes import ENVIRONMENT

QUICK = ("bert/full/scan", "bert/none/unrolled")
ALL = tuple(
    f"{family}/{how}"
    for family in ("roberta", "deberta-v2", "gpt2", "llama", "qwen3")
    for how in ("full/scan", "dots/scan", "none/unrolled")
)
SETS = [(QUICK, (2,)), pytest.param(ALL, (2, 4, 8), marks=pytest.mark.slow)]


@pytest.mark.parametrize(("runs", "sizes"), SETS, ids=["bert", "others"])
def test_layers_that_gather_compute_as_one_device(runs, sizes, tmp_path):
    """In float64, so that only the order of sums over devices shows."""
    cases = [f"{run}/{count}" for run in runs for count in (1, *sizes)]
    command = [sys.executable, "-m", "tests.late_gathers", str(tmp_path), *cases]
    done = subprocess.run(
        command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "measured.json").read_text())
    for run in runs:
        one = found[f"{run}/1"]
        assert one["gathered"] == []
        assert all(score > 0 for score in one["scores"])
        for count in sizes:
            got = found[f"{run}/{count}"]
            np.testing.assert_allclose(got["loss"], one["loss"], rtol=1e-9)
            np.testing.assert_allclose(got["scores"], one["scores"], rtol=1e-9)
            for ours, theirs in zip(got["gradients"], one["gradients"], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-12)
            kernels = [shape for shape in got["gathered"] if len(shape) == 2]
            assert len(kernels) >= 4
            if run == "bert/full/scan":  # in both loops, and not once for every layer before them
                assert got["gathered"].count([16, 32]) == 2 < LAYERS
            # Not the kernels of all layers at once.
            assert not [s for s in got["gathered"] if len(s) > 2 and s[0] == LAYERS]

"""The project's public pieces against the published code's traces."""

import numpy as np
import pytest

from tests.replay import replay

TRACES = ("advance-restart", "no-advance", "no-restart", "two-at-a-time")


@pytest.mark.parametrize("name", TRACES)
def test_trace_replays(reference_dir, name):
    errors = replay(reference_dir / f"{name}.npz")
    # Rounding alone: 80 steps of float64, read elementwise down to the smallest entry of ΔW.
    assert max(errors.values()) < 1e-9


@pytest.mark.parametrize("quantity", ["task_loss", "importance", "rank", "group_lr"])
def test_replay_names_step_and_quantity(reference_dir, tmp_path, quantity):
    with np.load(reference_dir / "advance-restart.npz") as archive:
        trace = {key: archive[key] for key in archive.files}
    trace[f"trace/{quantity}"][7, ...] = trace[f"trace/{quantity}"][7] * 2
    np.savez(tmp_path / "wrong.npz", **trace)
    with pytest.raises(AssertionError, match=f"step 7: {quantity}"):
        replay(tmp_path / "wrong.npz")

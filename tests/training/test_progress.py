"""What the host knows of a run goes through JSON and back."""

import json

from increlora_jax.training.progress import Progress


def test_everything_survives_json():
    progress = Progress(
        step=40,
        evaluated=30,
        metrics={"accuracy": 0.1 + 0.2},
        best_metrics={"accuracy": 1.0},
        best_step=20,
        rounds={6: {"encoder.0.query": 1}, 12: {"encoder.0.query": 2}},
        skipped=[3, 4],
        skipped_in_a_row=1,
        spent=18,
        tokens=12_345,
        places=54_321,
        seconds=1.5,
        training_seconds=1.25,
        log_bytes=678,
    )
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress


def test_nothing_is_shared_between_two_new_ones():
    Progress().rounds[1] = {"a": 1}
    assert Progress().rounds == {}
    assert Progress.from_json(Progress().to_json()) == Progress()

"""What the host knows of a run goes through JSON and back."""

import json

import pytest

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
        finished=[18],
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


def test_finished_is_known_by_step_and_may_end():
    progress = Progress(finished=[3, 6, 8])
    assert [at for at in range(12) if progress.is_finished(at)] == [4, 5, 6, 9, 10, 11]


@pytest.mark.parametrize(("spent", "finished"), [(None, []), (18, [18])])
def test_a_budget_spent_in_an_older_version_is_finished(spent, finished):
    saved = Progress().to_json()
    saved.pop("finished")
    upgraded = Progress.upgrade(saved | {"spent": spent})
    assert Progress.from_json(upgraded) == Progress(finished=finished)
    assert Progress.upgrade(upgraded) == upgraded

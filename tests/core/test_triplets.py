import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.core.triplets import (
    average_entries,
    cubic_budget,
    init_averages,
    keep_highest,
    score_slots,
)

BETA1, BETA2 = 0.85, 0.7


def test_averages_and_scores_follow_the_papers_equations(float64, make_adapter):
    adapter, averages = make_adapter(5, 3, 4), init_averages(make_adapter(5, 3, 4))
    mean = dict.fromkeys(adapter._fields, 0.0)
    spread = dict(mean)
    for step in range(4):
        draw = np.random.default_rng(step)
        gradient = jax.tree.map(
            lambda w, draw=draw: jnp.asarray(draw.normal(size=w.shape)), adapter
        )
        averages = average_entries(adapter, gradient, averages, BETA1, BETA2)
        for name in mean:
            raw = np.abs(np.asarray(getattr(adapter, name)) * np.asarray(getattr(gradient, name)))
            mean[name] = BETA1 * mean[name] + (1 - BETA1) * raw
            spread[name] = BETA2 * spread[name] + (1 - BETA2) * np.abs(raw - mean[name])
    score = {name: mean[name] * spread[name] for name in mean}
    expected = score["lam"] + score["A"].mean(axis=0) + score["B"].mean(axis=1)
    np.testing.assert_allclose(score_slots(averages), expected, rtol=1e-13)


def test_the_highest_scores_are_kept_over_all_modules_and_ties_by_order():
    scores = jnp.array([[0.5, 0.1, 0.5], [0.9, 0.5, 0.0]])
    kept = [keep_highest(scores, jnp.int32(n)).astype(int).tolist() for n in (0, 1, 3, 6)]
    assert kept[0] == [[0, 0, 0], [0, 0, 0]]
    assert kept[1] == [[0, 0, 0], [1, 0, 0]]
    assert kept[2] == [[1, 0, 1], [1, 0, 0]]
    assert kept[3] == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("step", [0, 5, 6, 17, 30, 44, 45, 60])
def test_the_budget_falls_by_the_cubic_schedule_of_peft(float64, step):
    numbers = {"initial": 24, "final": 10, "start": 5, "end": 45}
    left = min(1.0, max(0.0, 1 - (step - 5) / (45 - 5)))
    assert int(cubic_budget(jnp.int32(step), **numbers)) == int((24 - 10) * left**3 + 10)

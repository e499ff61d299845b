import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.core.adapter import Scaling, effective_update
from increlora_jax.core.importance import (
    IMPORTANCE_FUNCTIONS,
    Evidence,
    ImportanceState,
    init_importance,
    lasting_steps,
    short_window,
    update_importance,
)

IN, SLOTS, OUT = 6, 4, 5


@pytest.fixture
def update(float64, make_adapter, make_slots):
    adapter = make_adapter(IN, SLOTS, OUT)
    update = effective_update(adapter, make_slots("arad"), Scaling(16))
    return update._replace(lam_hat=jnp.array([0.7, 1e-5, -2.0, 0.0]))


@pytest.fixture
def gradient(float64):
    return jnp.asarray(np.random.default_rng(1).normal(size=(IN, OUT)))


@pytest.fixture
def delta(update):
    A, lam_hat, B, scale = (np.asarray(part) for part in update[:4])
    return scale * sum(lam * np.outer(A[:, k], B[k]) for k, lam in enumerate(lam_hat))


def score(name, *args):
    return float(IMPORTANCE_FUNCTIONS[name].score(*args))


def test_sensitivity_is_the_mean_first_order_effect_of_the_update(update, gradient, delta):
    expected = np.abs(delta * np.asarray(gradient)).sum() / np.sqrt(IN * OUT)
    np.testing.assert_allclose(score("sensitivity", gradient, update, None), expected, rtol=1e-13)


def test_sensitivity_includes_the_reserve(update, gradient):
    without = update._replace(lam_hat=update.lam_hat.at[1].set(0.0))
    assert score("sensitivity", gradient, update, None) != score(
        "sensitivity", gradient, without, None
    )


def test_lambda_gradient_weighs_active_slots_by_lambda_and_the_reserve_by_one(update):
    gradient = jnp.array([3.0, -5.0, 7.0, 11.0])
    got = score("lambda_gradient", gradient, update, None)
    np.testing.assert_allclose(got, 0.7 * 3 + 5 + 2 * 7, rtol=1e-15)


def test_gradient_norm_is_the_root_mean_square_of_the_gradient(update, gradient):
    expected = np.linalg.norm(gradient) / np.sqrt(IN * OUT)
    np.testing.assert_allclose(score("gradient_norm", gradient, update, None), expected, rtol=1e-13)


def test_magnitude_is_the_root_mean_square_of_the_update(update, delta):
    expected = np.linalg.norm(delta) / np.sqrt(IN * OUT)
    np.testing.assert_allclose(score("magnitude", None, update, None), expected, rtol=1e-13)


def test_random_draws_from_the_unit_interval_by_its_key_alone(update):
    draws = [score("random", None, update, jax.random.key(k)) for k in range(400)]
    assert (
        score("random", None, update._replace(scale=jnp.array(9.0)), jax.random.key(3))
        == (draws[3])
    )
    assert len(set(draws)) == 400
    assert min(draws) >= 0
    assert max(draws) < 1
    # Four standard errors of 400 uniform draws.
    assert abs(np.mean(draws) - 0.5) < 4 * np.sqrt(1 / 12 / 400)


def test_uniform_puts_the_lowest_rank_first(float64, make_adapter, make_slots):
    adapter = make_adapter(IN, SLOTS, OUT)
    for letters, rank in {"rddd": 0, "arad": 2, "aaaa": 4}.items():
        update = effective_update(adapter, make_slots(letters), Scaling(16))
        assert score("uniform", None, update, None) == -rank


def test_each_function_asks_for_the_cheapest_evidence_it_can_be_computed_from():
    asked = {name: (f.evidence, f.is_smoothed) for name, f in IMPORTANCE_FUNCTIONS.items()}
    assert asked == {
        "sensitivity": (Evidence.DENSE, True),
        "lambda_gradient": (Evidence.SLOTS, True),
        "gradient_norm": (Evidence.DENSE, True),
        "magnitude": (Evidence.NONE, False),
        "random": (Evidence.NONE, False),
        "uniform": (Evidence.NONE, False),
    }


def test_averages_follow_their_recursion(float64):
    raw = np.abs(np.random.default_rng(0).normal(size=(7, 3)))
    state = init_importance(3, jnp.float64)
    mean, spread = np.zeros(3), np.zeros(3)
    for row in raw:
        mean = 0.85 * mean + 0.15 * row
        spread = 0.7 * spread + 0.3 * np.abs(row - mean)
        state = update_importance(jnp.asarray(row), state, 0.85, 0.7)
        np.testing.assert_allclose(state.sensitivity, mean, rtol=1e-14)
        np.testing.assert_allclose(state.uncertainty, spread, rtol=1e-14)


def test_uncertainty_is_measured_from_the_new_average(float64):
    zero = init_importance(1, jnp.float64)
    state = update_importance(jnp.ones(1), zero, 0.85, 0.85)
    # From the old average it would be 0.15 · 1.
    np.testing.assert_allclose(state.uncertainty, 0.15 * 0.85, rtol=1e-15)


def test_averages_start_at_zero(float64):
    state = init_importance(4, jnp.float64)
    assert isinstance(state, ImportanceState)
    for average in state:
        assert average.dtype == jnp.float64
        assert average.tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("beta1", "beta2"), [(0.85, 0.85), (0.5, 0.9), (0.95, 0.2), (0.0, 0.0), (0.0, 0.3)]
)
def test_scores_that_do_not_last_change_no_digit(beta1, beta2):
    """Averages that start at zero come to what those come to that have seen 200 times as much."""
    scores = np.random.default_rng(5).uniform(0.5, 1.5, (lasting_steps(beta1, beta2), 4))
    zero = init_importance(4, jnp.float32)
    start = ImportanceState(zero.sensitivity + 200, zero.uncertainty + 200)

    def averaged(state, scores):
        for row in jnp.asarray(scores, jnp.float32):
            state = update_importance(row, state, beta1, beta2)
        return state

    for with_past, without in zip(averaged(start, scores), averaged(zero, scores), strict=True):
        # float32 rounds by 2⁻²⁴ a step; scores are about 1, and so is the scale of what is 0.
        np.testing.assert_allclose(with_past, without, rtol=2.0**-22, atol=2.0**-24)


def test_scores_last_no_longer_than_they_must():
    """The first k with k · 0.85ᵏ < 2⁻³²; decays near one last long, and are found at once."""
    assert lasting_steps(0.85, 0.3) == lasting_steps(0.3, 0.85) == 169
    assert 168 * 0.85**168 >= 2**-32 > 169 * 0.85**169
    assert lasting_steps(0.0, 0.0) == 1
    assert 3e10 < lasting_steps(1 - 1e-9, 0.5) < 1e11


@pytest.mark.parametrize(
    ("decays", "interval", "window"),
    [((0.85, 0.3), 200, 15), ((0.3, 0.85), 200, 15), ((0.85, 0.85), 12, 6), ((0.85, 0.85), 5, 3),
     ((0.0, 0.0), 200, 1), ((0.99, 0.5), 10_000, 230), ((0.85, 0.85), 1, 1)],
)  # fmt: skip
def test_a_short_window_leaves_a_tenth_of_the_weight_or_half_of_the_steps(decays, interval, window):
    assert short_window(*decays, interval) == window
    if window != -(-interval // 2):
        assert max(decays) ** window <= 0.1 < max(decays) ** (window - 1)

import math

import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.core.adapter import NEVER
from increlora_jax.core.schedule import SHAPES, rate_at

LR, WARMUP, TOTAL = 0.3, 5, 20


def by_hand(name, age, warmup, horizon):
    if age < warmup:
        return age / warmup
    if name == "constant_with_warmup":
        return 1.0
    left = (horizon - age) / (horizon - warmup)
    return max(left, 0.0) if name == "linear" else 0.5 * (1 - math.cos(math.pi * max(left, 0.0)))


def rate(step, born=0, *, name="linear", warmup=WARMUP, total=TOTAL, restart=True):
    return rate_at(
        jnp.asarray(step, jnp.int32),
        jnp.asarray(born, jnp.int32),
        learning_rate=LR,
        warmup_steps=warmup,
        total_steps=total,
        restart_warmup=restart,
        shape=SHAPES[name],
        dtype=jnp.float64,
    )


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("born", [0, 7])
def test_age_counts_from_birth_and_the_horizon_is_what_is_left(float64, name, born):
    for step in range(born, TOTAL + 3):
        expected = LR * by_hand(name, step - born, WARMUP, TOTAL - born)
        np.testing.assert_allclose(rate(step, born, name=name), expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("name", SHAPES)
def test_without_restart_a_newborn_joins_the_schedule_of_the_run(float64, name):
    for step in range(7, TOTAL + 1):
        expected = LR * by_hand(name, step, WARMUP, TOTAL)
        got = rate(step, 7, name=name, restart=False)
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("restart", [True, False])
def test_rate_is_zero_before_birth(float64, name, restart):
    for step in range(8):
        assert rate(step, 8, name=name, restart=restart) == 0
        assert rate(step, NEVER, name=name, restart=restart) == 0
    assert rate(8, 8, name=name, restart=False) > 0


@pytest.mark.parametrize("restart", [True, False])
def test_rates_of_many_births_are_those_of_each(float64, restart):
    births = [[0, 3, 9], [10, 11, NEVER]]
    together = rate(10, births, restart=restart)
    apart = [[float(rate(10, b, restart=restart)) for b in row] for row in births]
    np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize("name", SHAPES)
def test_without_warmup_the_first_step_has_the_full_rate(float64, name):
    np.testing.assert_allclose(rate(0, name=name, warmup=0), LR, rtol=1e-15)


def test_cosine_is_at_half_way_at_half_the_rate(float64):
    np.testing.assert_allclose(rate(12, name="cosine", warmup=4), LR / 2, rtol=1e-13)


def test_born_too_late_for_its_warmup_a_slot_never_gets_past_it(float64):
    rates = [float(rate(step, 17)) for step in range(17, TOTAL)]
    np.testing.assert_allclose(rates, LR * np.arange(3) / WARMUP, rtol=1e-13)


def test_rate_has_the_asked_precision():
    step, born = jnp.asarray(1), jnp.asarray(0)
    got = rate_at(step, born, learning_rate=LR, warmup_steps=2, total_steps=4)
    assert got.dtype == jnp.float32

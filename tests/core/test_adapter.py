import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.core.adapter import (
    NEVER,
    Adapter,
    Scaling,
    effective_lambda,
    effective_update,
    init_slots,
)

IN, SLOTS, OUT = 11, 4, 13  # all different: a shape tells what an array is


@pytest.mark.parametrize(("is_advancing", "resting"), [(True, 1e-5), (False, 0.0)])
def test_effective_lambda_of_every_state(make_slots, is_advancing, resting):
    adapter = Adapter(jnp.ones((2, 3)), jnp.array([2.0, 3.0, 4.0]), jnp.ones((3, 2)))
    lam_hat = effective_lambda(adapter, make_slots("ard", is_advancing=is_advancing))
    np.testing.assert_array_equal(lam_hat, np.float32([2.0, resting, 0.0]))


def test_stacked_layers_advance_each_by_itself(make_slots):
    slots = make_slots(["ard", "ard"])._replace(is_advancing=jnp.array([True, False]))
    adapter = Adapter(jnp.ones((2, 4, 3)), jnp.full((2, 3), 2.0), jnp.ones((2, 3, 5)))
    expected = np.float32([[2, 1e-5, 0], [2, 0, 0]])
    np.testing.assert_array_equal(effective_lambda(adapter, slots), expected)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("rank", lambda r: 16 / (r + 1e-5)),
        ("target", lambda r: 16 / 2.5 + 0 * r),
        ("rsqrt", lambda r: 16 / np.sqrt(r + 1e-5)),
    ],
)
def test_scale_follows_its_rule(float64, rule, expected):
    ranks = np.array([0, 1, 2, 7])
    scale = Scaling(16, rule, 2.5)(jnp.asarray(ranks, jnp.int32), jnp.float64)
    np.testing.assert_allclose(scale, expected(ranks), rtol=1e-15)


def test_scale_follows_the_present_rank(make_adapter, make_slots):
    adapter = make_adapter(IN, SLOTS, OUT)
    scales = [effective_update(adapter, make_slots(s), Scaling(16)).scale for s in ("ardd", "aard")]
    np.testing.assert_allclose(scales, [16 / 1.00001, 16 / 2.00001], rtol=1e-6)  # float32


def test_first_slots_open_active_and_the_rest_dormant():
    slots = init_slots(5, 2, stack=(3,))
    assert slots.active.tolist() == [[True, True, False, False, False]] * 3
    assert not slots.reserve.any()
    assert slots.is_advancing.tolist() == [False] * 3
    for born in (slots.lambda_born, slots.matrix_born):
        assert born.tolist() == [[0, 0, NEVER, NEVER, NEVER]] * 3
    assert slots.rank.tolist() == [2, 2, 2]


def test_delta_of_a_stack_is_the_stack_of_deltas(float64, make_adapter, make_slots):
    adapter = make_adapter(IN, SLOTS, OUT, stack=(2,))
    slots = make_slots(["arad", "aaar"])
    stacked = effective_update(adapter, slots, Scaling(16)).delta
    for layer in range(2):
        one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], (adapter, slots))
        expected = effective_update(*one, Scaling(16)).delta
        np.testing.assert_allclose(stacked[layer], expected, rtol=1e-13, atol=1e-16)

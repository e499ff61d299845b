"""Slots that are pruned, and slots that come back."""

import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.core.adapter import NEVER, Scaling, effective_lambda, effective_update
from increlora_jax.core.pruning import choose_losses, find_weakest, prune, restore

IN, SLOTS, OUT = 3, 4, 2
STEP = jnp.asarray(9)


def mask(*slots):
    return jnp.isin(jnp.arange(SLOTS), jnp.array(slots))


def test_a_pruned_slot_is_dormant_and_keeps_its_matrices(make_adapter, make_slots):
    before = make_adapter(IN, SLOTS, OUT)
    adapter, slots = prune(before, make_slots("aara"), mask(1, 2))
    assert slots.active.tolist() == [True, False, False, True]
    assert not slots.reserve.any()
    assert slots.lambda_born.tolist() == slots.matrix_born.tolist() == [0, NEVER, NEVER, 0]
    np.testing.assert_array_equal(adapter.A, before.A)
    np.testing.assert_array_equal(adapter.B, before.B)
    assert adapter.lam.tolist() == [before.lam[0], 0, 0, before.lam[3]]
    assert effective_update(adapter, slots, Scaling(16.0, "target")).slots.rank == 2


def test_a_restored_slot_is_born_at_the_next_step_and_others_keep_their_births(make_slots):
    slots = restore(make_slots("aard", matrix_born=2), mask(0, 2, 3), STEP)
    assert slots.active.all()
    assert slots.lambda_born.tolist() == [0, 0, 10, 10]
    assert slots.matrix_born.tolist() == [2, 2, 2, 10]  # the reserve has learned all the while


@pytest.mark.parametrize("stack", [(), (5,)])
def test_a_slot_on_trial_is_applied_with_its_own_lambda_and_not_counted(
    make_adapter, make_slots, stack
):
    adapter = make_adapter(IN, SLOTS, OUT, stack=stack)
    slots = make_slots(["aaad"] * 5 if stack else "aaad", is_advancing=False)
    tried = slots._replace(reserve=jnp.broadcast_to(mask(1), slots.reserve.shape))
    np.testing.assert_array_equal(
        effective_lambda(adapter, tried), effective_lambda(adapter, slots)
    )
    np.testing.assert_array_equal(tried.applied, slots.applied)
    assert np.all(tried.rank == 2)
    again = restore(tried, jnp.broadcast_to(mask(1), slots.reserve.shape), STEP)
    assert np.all(again.rank == 3)
    np.testing.assert_array_equal(again.lambda_born, slots.lambda_born)


def test_the_least_important_modules_lose_slots_but_one_stays():
    importance = jnp.array([5.0, 1.0, 2.0, 0.5, 3.0])
    ranks = jnp.array([4, 1, 2, 3, 5])
    losses = choose_losses(importance, ranks, top_h=3, incre_rank_num=2)
    assert losses.tolist() == [0, 0, 1, 2, 2]
    none = choose_losses(importance, jnp.ones(5, int), top_h=3, incre_rank_num=2)
    assert none.tolist() == [0] * 5


def test_the_weakest_slots_are_those_of_the_smallest_update(make_adapter, make_slots):
    adapter = make_adapter(IN, SLOTS, OUT, seed=3)
    sizes = [
        np.linalg.norm(adapter.lam[k] * np.outer(adapter.A[:, k], adapter.B[k]))
        for k in range(SLOTS)
    ]
    for letters in ("aaaa", "adaa", "rraa"):
        slots = make_slots(letters)
        order = sorted(np.flatnonzero(slots.active), key=lambda k: sizes[k])
        for count in range(3):
            found = find_weakest(adapter, slots, jnp.asarray(count))
            assert np.flatnonzero(found).tolist() == sorted(order[:count])

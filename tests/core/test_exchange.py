"""Slots that change their module, beside loops over lists as the published codes have them."""

from math import log

import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.core.adapter import NEVER
from increlora_jax.core.exchange import (
    exchange_by_module,
    exchange_slots,
    falling_count,
    open_slots,
    spectral_entropy,
)


def draw_modules(seed, modules=7, width=6):
    """Scores and the active slots of modules of ranks 1 to the width."""
    draw = np.random.default_rng(seed)
    ranks = draw.integers(1, width + 1, modules)
    active = np.stack([draw.permutation(np.arange(width) < rank) for rank in ranks])
    return draw.permutation(modules * width).reshape(modules, width).astype(float), active


def exchange_lists(scores, active, ranks, depth):
    """The slots that leave and the modules that grow, in plain loops."""
    candidates = []
    for module, (own, held) in enumerate(zip(scores, active, strict=True)):
        slots = sorted(np.flatnonzero(held), key=lambda slot, own=own: own[slot])
        candidates += [(own[slot], module, slot) for slot in slots[: min(depth, len(slots) - 1)]]
    candidates.sort()
    room = (~active).sum(-1)
    growing = []
    for _, module, _ in reversed(candidates):
        if room[module]:
            room[module] -= 1
            growing.append(module)
    number = min(ranks, len(candidates) // 2, len(growing))
    leaving = {(module, slot) for _, module, slot in candidates[:number]}
    return leaving, np.bincount(growing[:number], minlength=len(active))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(("ranks", "depth"), [(4, 2), (1, 1), (9, 3), (100, 100)])
def test_the_lowest_slots_leave_and_the_modules_of_the_highest_candidates_grow(seed, ranks, depth):
    scores, active = draw_modules(seed)
    chosen = exchange_slots(jnp.asarray(scores), jnp.asarray(active), ranks=ranks, depth=depth)
    leaving, granted = exchange_lists(scores, active, ranks, depth)
    assert {tuple(place) for place in np.argwhere(chosen.pruned)} == leaving
    assert chosen.granted.tolist() == granted.tolist()
    assert int(chosen.granted.sum()) == int(chosen.pruned.sum())


def exchange_module_lists(importance, energy, active, ranks):
    order = np.argsort(importance, kind="stable")
    count = active.sum(-1)
    most = min(ranks, len(order) // 2)
    shrinking = [m for m in order if count[m] > 1][:most]
    growing = [m for m in np.argsort(-importance, kind="stable")
               if m not in shrinking and count[m] < active.shape[1]]  # fmt: skip
    number = min(len(shrinking), len(growing))
    leaving = {
        (m, min(np.flatnonzero(active[m]), key=lambda slot, m=m: energy[m, slot]))
        for m in shrinking[:number]
    }
    return leaving, growing[:number]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("ranks", [1, 3, 50])
def test_modules_of_low_importance_lose_their_weakest_slot_to_those_of_high(seed, ranks):
    energy, active = draw_modules(seed)
    importance = np.random.default_rng(seed).permutation(len(active)) / 7
    given = (jnp.asarray(x) for x in (importance, energy, active))
    chosen = exchange_by_module(*given, ranks=ranks)
    leaving, growing = exchange_module_lists(importance, energy, active, ranks)
    assert {tuple(place) for place in np.argwhere(chosen.pruned)} == leaving
    assert np.flatnonzero(chosen.granted).tolist() == sorted(growing)
    assert int(chosen.granted.sum()) == int(chosen.pruned.sum())


def test_the_entropy_is_that_of_the_squares_over_the_active_slots():
    lam = jnp.array([[3.0, -1.0, 2.0, 9.0], [1.0, 1.0, -1.0, 1.0], [5.0, 0, 0, 0], [0, 0, 0, 0]])
    active = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], bool)
    shares = [9 / 14, 1 / 14, 4 / 14]
    expected = [-sum(p * log(p) for p in shares) / log(3), 1.0, 0.0, 1.0]
    np.testing.assert_allclose(spectral_entropy(lam, active), expected, rtol=1e-6)
    one_left = spectral_entropy(jnp.array([4.0, 0.0, 7.0]), jnp.array([True, True, False]))
    assert float(one_left) == 0


def test_the_number_falls_by_a_cubic_and_is_rounded():
    found = [int(falling_count(jnp.asarray(t), first=8, start=10, end=30)) for t in range(35)]
    assert found[:11] == [8] * 11
    assert found[10:30] == [round(8 * (1 - ((t - 10) / 20) ** 3)) for t in range(10, 30)]
    assert found[30:] == [0] * 5


def test_opened_slots_take_fresh_values_and_are_born_at_the_next_step(make_adapter, make_slots):
    before, fresh = make_adapter(3, 4, 2), make_adapter(3, 4, 2, seed=9)
    adapter, slots = open_slots(before, make_slots("addr"), jnp.asarray(1), jnp.asarray(6), fresh)
    assert slots.active.tolist() == [True, True, False, False]
    assert slots.lambda_born.tolist()[:3] == [0, 7, NEVER]
    assert slots.matrix_born.tolist()[:3] == [0, 7, NEVER]
    for name, axis in (("A", 1), ("lam", 0), ("B", 0)):
        got, new, old = (np.asarray(getattr(own, name)) for own in (adapter, fresh, before))
        np.testing.assert_array_equal(got.take(1, axis), new.take(1, axis))
        np.testing.assert_array_equal(got.take([0, 2, 3], axis), old.take([0, 2, 3], axis))

"""Few shapes: what they cost, against every other choice."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from increlora_jax.tasks.batching import choose_bucket, length_buckets
from increlora_jax.tasks.packing import Packed, pack_lengths
from increlora_jax.tasks.shapes import choose_buckets, choose_packed, is_worthwhile

BUCKETS = length_buckets(128)


def cost(lengths, buckets, shape_cost):
    used = [bucket for bucket in buckets if bucket <= choose_bucket(max(lengths), BUCKETS)]
    padded = sum(choose_bucket(length, tuple(buckets)) for length in lengths)
    return padded + shape_cost * len(used)


@given(st.lists(st.integers(1, 128), min_size=1, max_size=60), st.sampled_from([0.0, 100.0, 500.0]))
def test_no_bucket_can_be_left_out_and_the_cost_is_near_the_least(lengths, shape_cost):
    chosen = choose_buckets(lengths, BUCKETS, shape_cost)
    assert chosen[-1] == 128  # for a batch that was not looked at
    longest = choose_bucket(max(lengths), BUCKETS)
    shorter = [bucket for bucket in BUCKETS if bucket < longest]
    every = (
        (*some, *(b for b in BUCKETS if b >= longest))
        for count in range(len(shorter) + 1)
        for some in combinations(shorter, count)
    )
    least = min(cost(lengths, some, shape_cost) for some in every)
    assert cost(lengths, chosen, shape_cost) <= 1.15 * least
    if shape_cost == 0:
        assert cost(lengths, chosen, 0) == least


def test_a_short_run_has_one_shape_and_a_long_one_several():
    lengths = [20] * 60 + [60] * 40
    assert choose_buckets(lengths, BUCKETS, 4000) == (64, 96, 128)
    assert choose_buckets(lengths, BUCKETS, 40) == (32, 64, 96, 128)


@given(
    st.lists(
        st.lists(st.integers(1, 60), min_size=1, max_size=20).map(np.array), min_size=1, max_size=9
    ),
    st.sampled_from([0.0, 1000.0]),
)
def test_packed_batches_all_fit_and_some_need_every_number_of_rows(batches, shape_cost):
    longest = max(int(batch.max()) for batch in batches)
    packed = choose_packed([[batch] for batch in batches], longest, BUCKETS, shape_cost)
    needed = [len(pack_lengths(batch, packed.length)) for batch in batches]
    assert longest <= packed.length
    assert max(needed) <= packed.rows[-1] <= 1.25 * max(needed)
    shapes = [packed.shape(count) for count in needed]
    assert {rows for rows, _ in shapes} == set(packed.rows)
    assert all(rows >= count for (rows, _), count in zip(shapes, needed, strict=True))
    assert packed.places == pytest.approx(np.mean([np.prod(shape) for shape in shapes]))
    assert packed.shape(packed.rows[-1] + 1) == (packed.rows[-1] + 1, packed.length)
    if not shape_cost:
        assert all(rows <= 1.25 * count for (rows, _), count in zip(shapes, needed, strict=True))


@pytest.mark.parametrize(("needed", "rows"), [(1, 1), (8, 8), (9, 10), (17, 20), (33, 40)])
def test_rows_are_rounded_up_so_that_other_seeds_have_the_same_shape(needed, rows):
    packed = choose_packed([[np.full(needed, 60)]], 60, (64,), 100.0)
    assert packed.rows == (rows,)


def test_the_batches_of_a_group_have_one_shape():
    small, large = np.full(2, 60), np.full(8, 60)
    together = choose_packed([[small, large]] * 9, 60, (64,), 0.0)
    assert together.rows == (8,)
    assert choose_packed([[small], [large]] * 9, 60, (64,), 0.0).rows == (2, 8)


@pytest.mark.parametrize(("padded", "is_worth"), [(1000, True), (700, False)])
def test_packing_has_to_save_positions(padded, is_worth):
    assert is_worthwhile(Packed((5,), 128, 640.0), [padded] * 3) is is_worth

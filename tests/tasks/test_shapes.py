"""Few shapes: what they cost, against every other choice."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from increlora_jax.tasks.batching import choose_bucket, length_buckets
from increlora_jax.tasks.packing import pack_lengths
from increlora_jax.tasks.shapes import Packed, choose_buckets, choose_packed, is_worthwhile

BUCKETS = length_buckets(128)


def cost(lengths, buckets, program_cost):
    used = [bucket for bucket in buckets if bucket <= choose_bucket(max(lengths), BUCKETS)]
    padded = sum(choose_bucket(length, tuple(buckets)) for length in lengths)
    return padded + program_cost * choose_bucket(max(lengths), BUCKETS) * len(used)


@given(st.lists(st.integers(1, 128), min_size=1, max_size=60), st.sampled_from([0.0, 1.0, 5.0]))
def test_no_bucket_can_be_left_out_and_the_cost_is_near_the_least(lengths, program_cost):
    chosen = choose_buckets(lengths, BUCKETS, program_cost)
    assert chosen[-1] == 128  # for a batch that was not looked at
    longest = choose_bucket(max(lengths), BUCKETS)
    shorter = [bucket for bucket in BUCKETS if bucket < longest]
    every = (
        (*some, *(b for b in BUCKETS if b >= longest))
        for count in range(len(shorter) + 1)
        for some in combinations(shorter, count)
    )
    least = min(cost(lengths, some, program_cost) for some in every)
    assert cost(lengths, chosen, program_cost) <= 1.15 * least
    if program_cost == 0:
        assert cost(lengths, chosen, 0) == least


def test_a_short_run_has_one_shape_and_a_long_one_several():
    lengths = [20] * 60 + [60] * 40
    assert choose_buckets(lengths, BUCKETS, 60) == (64, 96, 128)
    assert choose_buckets(lengths, BUCKETS, 0.6) == (32, 64, 96, 128)


@given(
    st.lists(
        st.lists(st.integers(1, 60), min_size=1, max_size=20).map(np.array), min_size=1, max_size=9
    )
)
def test_packed_batches_all_fit_and_one_of_them_needs_every_row(batches):
    longest = max(int(batch.max()) for batch in batches)
    shape = choose_packed(batches, longest, BUCKETS)
    needed = [len(pack_lengths(batch, shape.length)) for batch in batches]
    assert longest <= shape.length
    assert max(needed) == shape.rows


@pytest.mark.parametrize(("padded", "is_worth"), [(1000, True), (700, False)])
def test_packing_has_to_save_positions(padded, is_worth):
    assert is_worthwhile(Packed(5, 128), [padded] * 3) is is_worth

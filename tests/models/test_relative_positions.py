"""Buckets against PyTorch's transformers; skewed scores against picked ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.models.relative_positions import (
    RelativePositions,
    bucket_distances,
    find_table_rows,
)


@pytest.mark.parametrize(
    ("buckets", "limit"), [(256, 512), (32, 512), (8, 64), (7, 40), (4, 128), (2, 30)]
)
def test_buckets_equal_pytorch(buckets, limit):
    torch = pytest.importorskip("torch")
    deberta = pytest.importorskip("transformers.models.deberta_v2.modeling_deberta_v2")
    distances = np.arange(-1200, 1200)
    expected = deberta.make_log_bucket_position(torch.tensor(distances), buckets, limit).long()
    np.testing.assert_array_equal(bucket_distances(distances, buckets, limit), expected)


def test_without_buckets_a_row_is_a_distance_and_far_ones_share_the_ends():
    np.testing.assert_array_equal(find_table_rows(3, -1, 4), [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(find_table_rows(4, -1, 2), [0, 0, 0, 1, 2, 3, 3, 3])


@pytest.mark.parametrize(("length", "is_slice"), [(128, True), (131, True), (132, False)])
def test_the_rows_of_deberta_v3_are_a_slice_until_distances_share_a_bucket(length, is_slice):
    rows = find_table_rows(length, 256, 512)
    assert rows[length] == 256  # distance 0
    assert (np.diff(rows) == 1).all() == is_slice


@pytest.mark.parametrize(("length", "buckets"), [(1, -1), (2, -1), (5, -1), (9, 4)])
def test_each_pair_meets_in_the_row_of_its_distance(length, buckets):
    random = np.random.default_rng(length)
    choice = find_table_rows(length, buckets, 16)
    choice = choice - choice[0]
    tokens = random.normal(size=(2, length, 3, 4)).astype(np.float32)
    table = random.normal(size=(choice[-1] + 1, 12)).astype(np.float32)
    distance = np.arange(length)[:, None] - np.arange(length)
    picked = table.reshape(-1, 3, 4)[choice[distance + length]]  # [query, key, heads, size]

    @jax.jit
    def score(tokens, table):
        positions = RelativePositions(table, choice)
        return (
            positions.score_content_to_position(tokens, table, jnp.float32),
            positions.score_position_to_content(tokens, table, jnp.float32),
        )

    by_query, by_key = score(tokens, table)
    np.testing.assert_allclose(by_query, np.einsum("bqhd,qkhd->bhqk", tokens, picked), atol=1e-5)
    np.testing.assert_allclose(by_key, np.einsum("bkhd,qkhd->bhqk", tokens, picked), atol=1e-5)

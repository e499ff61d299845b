"""Attention against closed forms and an oracle, and the slots of keys and values."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from increlora_jax.models.attention import KeyValue, attend, split_heads


def test_attention_is_the_mean_of_what_is_seen_where_scores_are_equal():
    value = jnp.arange(6.0).reshape(1, 3, 1, 2)
    query = jnp.ones((1, 2, 1, 2))
    seen = KeyValue(jnp.ones((1, 3, 1, 2)), value)
    is_seen = jnp.array([[[[True, False, True], [False, False, False]]]])
    mixed = attend(query, seen, is_seen, nnx.Dropout(0.0))
    # A query that sees nothing takes the mean of all, and no NaN.
    np.testing.assert_allclose(mixed, [[[2.0, 3.0], [2.0, 3.0]]])
    biased = attend(
        query, seen, is_seen, nnx.Dropout(0.0), bias=jnp.log(jnp.array([1.0, 1.0, 3.0]))
    )
    np.testing.assert_allclose(biased[0, 0], [3.0, 4.0], rtol=1e-6)
    sharp = attend(query.at[..., 0].set(2.0), seen._replace(key=value), is_seen, nnx.Dropout(0.0))
    expected = jax.nn.softmax(jnp.array([1.0, 13.0])) @ value[0, ::2, 0]
    np.testing.assert_allclose(sharp[0, 0], expected, rtol=1e-6)


def test_heads_of_queries_share_those_of_keys_in_order():
    """An oracle: repeat each head of keys and values, then attend head by head."""
    random = np.random.default_rng(0)
    query = random.normal(size=(2, 3, 6, 4))
    key, value = random.normal(size=(2, 2, 5, 2, 4))
    bias = random.normal(size=(1, 6, 3, 5))
    is_visible = random.random((2, 3, 5)) < 0.6
    is_visible[:, :, 0] = True
    mixed = attend(
        jnp.asarray(query, jnp.float32),
        KeyValue(jnp.asarray(key, jnp.float32), jnp.asarray(value, jnp.float32)),
        jnp.asarray(is_visible)[:, None],
        nnx.Dropout(0.0),
        scale=0.7,
        bias=jnp.asarray(bias, jnp.float32),
    )
    for head in range(6):
        scores = 0.7 * query[:, :, head] @ key[:, :, head // 3].swapaxes(1, 2) + bias[0, head]
        weights = np.exp(scores) * is_visible
        weights /= weights.sum(-1, keepdims=True)
        expected = weights @ value[:, :, head // 3]
        np.testing.assert_allclose(mixed[:, :, 4 * head : 4 * head + 4], expected, atol=1e-6)


def test_heads_are_parts_of_the_last_axis():
    heads = split_heads(jnp.arange(12.0).reshape(1, 2, 6), 3)
    np.testing.assert_array_equal(heads, [[[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]])


def test_new_tokens_are_written_into_the_room_that_was_made():
    old = KeyValue(jnp.ones((2, 2, 1, 3)), jnp.full((2, 2, 1, 3), -1.0))
    new = KeyValue(jnp.full((2, 1, 1, 3), 5.0), jnp.full((2, 1, 1, 3), -5.0))
    whole = old.pad(3).write(new, 2)
    np.testing.assert_array_equal(whole.key[:, :, 0, 0], [[1, 1, 5, 0, 0]] * 2)
    np.testing.assert_array_equal(whole.value[:, :, 0, 0], [[-1, -1, -5, 0, 0]] * 2)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from increlora_jax.dropout import Dropout, draw_mask

SHAPE = (64, 250, 101)


@pytest.fixture
def ones():
    return jnp.ones(SHAPE)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.75])
def test_share_of_zeros_is_the_rate_and_the_mean_stays(ones, rate):
    y = np.asarray(Dropout(rate, rngs=nnx.Rngs(0))(ones))
    zeros = np.count_nonzero(y == 0)
    assert stats.binomtest(zeros, y.size, rate).pvalue > 1e-3
    assert np.unique(y).size == 2
    np.testing.assert_allclose(y.max(), 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("probability", [0.5, 0.9])
def test_entries_are_independent_of_their_neighbours(probability):
    mask = np.asarray(draw_mask(jax.random.key(3), probability, SHAPE))
    same = probability**2 + (1 - probability) ** 2
    for axis in range(3):
        for apart in (1, 2, 3, 4, 8, 16, 25, 32):
            one = np.take(mask, np.arange(SHAPE[axis] - apart), axis)
            other = np.take(mask, np.arange(apart, SHAPE[axis]), axis)
            agreeing = np.count_nonzero(one == other)
            assert stats.binomtest(agreeing, one.size, same).pvalue > 1e-4, (axis, apart)


def test_the_sums_of_rows_and_of_columns_vary_as_those_of_independent_entries():
    mask = np.asarray(draw_mask(jax.random.key(4), 0.9, (4096, 1024)))
    for axis in (0, 1):
        sums, count = mask.sum(axis), mask.shape[axis]
        deviation = ((sums - 0.9 * count) ** 2).sum() / (count * 0.9 * 0.1)
        assert 1e-4 < stats.chi2.cdf(deviation, len(sums)) < 1 - 1e-4


@pytest.mark.parametrize("data", [(0, 0), (0, 1), (1, 0), (2**32 - 1, 1)])
def test_masks_of_neighbouring_keys_and_calls_are_independent(data):
    draws = [
        np.asarray(draw_mask(jax.random.wrap_key_data(jnp.array(d, jnp.uint32)), 0.5, SHAPE, call))
        for d, call in [(data, 0), (data, 1), (data, 2), ((data[0] ^ 1, 7), 0), ((5, data[1]), 0)]
    ]
    for index, one in enumerate(draws):
        assert stats.binomtest(int(one.sum()), one.size, 0.5).pvalue > 1e-4
        for other in draws[:index]:
            agreeing = np.count_nonzero(one == other)
            assert stats.binomtest(agreeing, one.size, 0.5).pvalue > 1e-4


def test_every_call_and_every_key_draws_anew(ones):
    dropout = Dropout(0.5, rngs=nnx.Rngs(0))
    draws = [dropout(ones), dropout(ones), Dropout(0.5, rngs=nnx.Rngs(1))(ones)]
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        agreeing = np.count_nonzero(np.asarray(draws[one] == draws[other]))
        assert stats.binomtest(agreeing, ones.size, 0.5).pvalue > 1e-4
    np.testing.assert_array_equal(draws[0], Dropout(0.5, rngs=nnx.Rngs(0))(ones))


def test_draws_are_the_same_under_jit_and_for_every_kind_of_key():
    for kind in ("threefry2x32", "rbg"):
        key = jax.random.key(5, impl=kind)
        alone = draw_mask(key, 0.6, (7, 9))
        together = jax.jit(draw_mask, static_argnums=(1, 2))(key, 0.6, (7, 9))
        np.testing.assert_array_equal(alone, together)
        assert 0.4 < np.mean(alone) < 0.8


def test_members_of_a_vmap_draw_what_they_draw_alone():
    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.vmap(lambda key: draw_mask(key, 0.3, (5, 6)))(keys)
    for key, mask in zip(keys, together, strict=True):
        np.testing.assert_array_equal(mask, draw_mask(key, 0.3, (5, 6)))


def test_nothing_is_dropped_in_evaluation_or_at_rate_0(ones):
    dropout = Dropout(0.5, rngs=nnx.Rngs(0))
    dropout.eval()
    assert dropout(ones) is ones
    assert Dropout(0.0)(ones) is ones


def test_everything_is_dropped_at_rate_1(ones):
    assert not Dropout(1.0, rngs=nnx.Rngs(0))(ones).any()


def test_gradient_passes_where_the_input_did(ones):
    def total(x):
        return jnp.sum(Dropout(0.25, rngs=nnx.Rngs(0))(x))

    kept = Dropout(0.25, rngs=nnx.Rngs(0))(ones)
    np.testing.assert_array_equal(jax.grad(total)(ones), kept)


def test_narrow_activations_keep_their_type():
    y = Dropout(0.5, rngs=nnx.Rngs(0))(jnp.ones((4, 8), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16

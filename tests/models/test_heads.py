"""What the heads of several encoders share, against the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.models.heads import VocabularyHead, split_span_logits
from increlora_jax.models.layers import LayerFactory

HIDDEN = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)


@pytest.fixture
def build(make_config):
    """Build a head with its word embeddings."""

    def build(is_tied, dtype=jnp.float32):
        config = make_config(tie_word_embeddings=is_tied)
        make = LayerFactory(config.initializer_range, dtype, dtype, nnx.Rngs(0))
        words = make.embedding(config.vocab_size, config.hidden_size)
        return VocabularyHead(config, config.hidden_size, make), words

    return build


def test_a_tied_head_compares_with_the_word_embeddings(build):
    head, words = build(is_tied=True)
    head.bias.set_value(jnp.arange(99.0))
    expected = HIDDEN @ np.asarray(words.embedding[...]).T + np.arange(99.0)
    np.testing.assert_allclose(head.score_words(HIDDEN, words), expected, atol=1e-5)
    assert set(nnx.to_pure_dict(nnx.state(head))) == {"bias"}


def test_an_untied_head_has_its_own_decoder(build):
    head, words = build(is_tied=False)
    kernel = np.asarray(head.decoder.kernel[...])
    np.testing.assert_allclose(head.score_words(HIDDEN, words), HIDDEN @ kernel, atol=1e-5)
    assert set(nnx.to_pure_dict(nnx.state(head))) == {"decoder"}


def test_a_tied_head_in_bfloat16_does_not_round_its_scores(build):
    """Products of two bfloat16 numbers are exact in float32, where they are summed."""
    head, words = build(is_tied=True, dtype=jnp.bfloat16)
    hidden = HIDDEN.astype(jnp.bfloat16)
    scores = head.score_words(hidden, words)
    expected = hidden.astype(np.float64) @ np.asarray(words.embedding[...], np.float64).T
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("is_tied", [True, False])
def test_float64_stays(build, is_tied):
    with jax.enable_x64(True):
        head, words = build(is_tied, dtype=jnp.float64)
        assert head.score_words(jnp.asarray(HIDDEN, jnp.float64), words).dtype == jnp.float64


def test_span_logits_are_parted_and_widened():
    logits = jnp.arange(12.0, dtype=jnp.bfloat16).reshape(2, 3, 2)
    starts, ends = split_span_logits(logits)
    np.testing.assert_array_equal(starts, [[0, 2, 4], [6, 8, 10]])
    np.testing.assert_array_equal(ends, [[1, 3, 5], [7, 9, 11]])
    assert starts.dtype == ends.dtype == jnp.float32

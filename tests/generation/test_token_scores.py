"""What rules tokens out, one rule at a time, against PyTorch's transformers where it has them."""

import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.errors import InputError
from increlora_jax.generation.token_scores import GenerationOptions, constrain_scores, narrow_scores

SCORES = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
TOKENS = np.array([[1, 2, 1, 3, 1, 0, 0], [4, 4, 4, 4, 4, 0, 0]])


def constrain(filled, start=3, **options):
    options = GenerationOptions(max_new_tokens=4, **options)
    return constrain_scores(SCORES, jnp.asarray(TOKENS), jnp.array(filled), start, options)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 8])
def test_repeats_are_pytorchs(size):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    expected = processors.NoRepeatNGramLogitsProcessor(size)(
        torch.as_tensor(TOKENS[:, :5]), torch.as_tensor(SCORES)
    )
    np.testing.assert_array_equal(constrain(5, no_repeat_ngram_size=size), expected)


def test_a_repeat_is_told_from_what_is_not_written_yet():
    """Of 1 2 1 3 1, after 1 have come 2 and 3; the zeros behind are no tokens."""
    banned = np.isneginf(constrain(5, no_repeat_ngram_size=2))
    assert np.flatnonzero(banned[0]).tolist() == [2, 3]
    assert np.flatnonzero(banned[1]).tolist() == [4]


@pytest.mark.parametrize(("filled", "is_banned"), [(3, True), (4, True), (5, False)])
def test_the_end_is_ruled_out_before_enough_new_tokens(filled, is_banned):
    scores = constrain(filled, min_new_tokens=2, eos_token_id=(2, 5))
    expected = SCORES.copy()
    if is_banned:
        expected[:, [2, 5]] = -np.inf
    np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize(("filled", "forced"), [(3, 1), (4, None), (5, None), (6, 5)])
def test_first_and_last_token_may_be_forced(filled, forced):
    scores = constrain(filled, forced_bos_token_id=1, forced_eos_token_id=5)
    if forced is None:
        np.testing.assert_array_equal(scores, SCORES)
    else:
        assert np.flatnonzero(np.isfinite(scores[0])).tolist() == [forced]
        assert scores[0, forced] == 0


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 3, 1.0), (1.0, 9, 1.0), (0.5, 0, 0.7), (1.0, 0, 1e-6), (2.0, 4, 0.8), (3.0, 0, 1.0)],
)
def test_narrowing_is_pytorchs(temperature, top_k, top_p):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    expected = torch.as_tensor(SCORES) / temperature
    if top_k:
        expected = processors.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = processors.TopPLogitsWarper(top_p)(None, expected)
    options = GenerationOptions(1, temperature=temperature, top_k=top_k, top_p=top_p)
    np.testing.assert_allclose(narrow_scores(jnp.asarray(SCORES), options), expected, rtol=1e-6)


def test_the_fewest_tokens_that_have_the_probability_stay():
    scores = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25]]))
    for top_p, kept in ((0.4, [1]), (0.6, [1, 3]), (0.8, [1, 2, 3]), (0.95, [0, 1, 2, 3])):
        narrowed = narrow_scores(scores, GenerationOptions(1, top_p=top_p))
        assert np.flatnonzero(np.isfinite(narrowed[0])).tolist() == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0. Give at least 1"),
        ({"num_beams": 0}, "num_beams is 0. Give at least 1"),
        ({"top_k": -1}, "top_k is -1. Give at least 0"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size is -2"),
        ({"temperature": 0.0}, r"temperature is 0\.0\. Give more than 0"),
        ({"top_p": 0.0}, r"top_p is 0\.0\. Give more than 0 and at most 1"),
        ({"top_p": 1.1}, r"top_p is 1\.1"),
        ({"do_sample": True, "num_beams": 2}, "do_sample and num_beams 2 exclude each other"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        GenerationOptions(**{"max_new_tokens": 4} | change)


def test_padding_is_the_end_unless_it_is_given():
    assert GenerationOptions(1, eos_token_id=(7, 8)).padding == 7
    assert GenerationOptions(1, eos_token_id=7, pad_token_id=0).padding == 0
    assert GenerationOptions(1).padding == 0

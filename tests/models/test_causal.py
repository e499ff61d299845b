"""What is seen of the past, its cache and the last token, of every causal architecture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.models.causal import Span, take_last_token
from increlora_jax.models.registry import find_spec
from tests.causal import PAD, Prompts, write_config

ARCHITECTURES = {"gpt2": {}, "mistral": {"sliding_window": 4}}
run = nnx.jit(lambda model, ids, mask: model(ids, mask))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tmp_path_factory):
    """A model of random weights that are large enough to make a difference."""
    folder = tmp_path_factory.mktemp(request.param)
    config = write_config(folder, request.param, **ARCHITECTURES[request.param])
    build = find_spec(config).heads["causal_lm"]
    model = nnx.jit(lambda: build(config, rngs=nnx.Rngs(0)))()
    model.eval()
    return model


def test_what_a_token_sees():
    span = Span.from_start(jnp.array([[0, 1, 1, 1], [1, 1, 1, 0]]))
    np.testing.assert_array_equal(span.positions, [[0, 0, 1, 2], [0, 1, 2, 2]])
    np.testing.assert_array_equal(
        span.find_visible()[0, 0], [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    )
    np.testing.assert_array_equal(
        span.find_visible(window=2)[1, 0], [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]
    )
    one = Span(span.positions[:, 3:], span.is_token, first=jnp.array(3))
    np.testing.assert_array_equal(one.find_visible(window=2)[0, 0], [[0, 0, 1, 1]])


def test_a_row_of_padding_only_is_finite(model):
    nothing = jnp.zeros((3, 6), jnp.int32)
    assert jnp.isfinite(run(model, nothing, nothing)).all()


@pytest.mark.parametrize(
    ("mask", "last"), [([1, 1, 1, 0], 2), ([0, 1, 1, 1], 3), ([1, 0, 0, 0], 0), ([0] * 4, 0)]
)
def test_the_last_token_is_found_on_either_side_of_padding(mask, last):
    hidden = jnp.arange(4.0)[None, :, None]
    assert take_last_token(jnp.array([mask]))(hidden).item() == last


def test_token_by_token_equals_all_at_once(model):
    """Prompts padded on either side, then the same continuation in every row."""
    prompts, new = Prompts.draw(0, 2, -3, length=6), 4
    ids, mask = jnp.asarray(prompts.input_ids), jnp.asarray(prompts.attention_mask)
    more = jnp.arange(PAD + 1, PAD + 1 + new)[None] + jnp.arange(3)[:, None]

    @nnx.jit
    def compare(model):
        whole = jnp.concatenate([ids, more], 1)
        expected = model(whole, jnp.concatenate([mask, jnp.ones_like(more)], 1))
        logits, cache = model.begin(ids, mask, new)
        steps = [logits]
        for tokens in more.T:
            logits, cache = model.advance(tokens, cache)
            steps.append(logits)
        assert {array.shape[0] for array in jax.tree.leaves(cache)} == {3}
        return expected, jnp.stack(steps, 1)

    expected, steps = compare(model)
    np.testing.assert_allclose(steps[:, 1:], expected[:, 6:], atol=2e-5)
    last = prompts.attention_mask[:, ::-1].argmax(1)  # how far the last token is from the end
    np.testing.assert_allclose(steps[:, 0], expected[np.arange(3), 5 - last], atol=2e-5)


def test_neither_the_future_nor_padding_changes_anything(model):
    ids, mask, _ = Prompts.draw(0, 2, 0, length=6)
    before = run(model, ids, mask)
    other = ids.copy()
    other[:, 4:] = other[:, 4:] + 1 - 2 * (other[:, 4:] > 20)
    other[1, :2] = 17
    after = run(model, other, mask)
    is_token = mask[:, :4] > 0
    np.testing.assert_array_equal(after[:, :4][is_token], before[:, :4][is_token])
    assert not np.allclose(after[:, 4:], before[:, 4:])

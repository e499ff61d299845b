"""Generation against PyTorch's transformers, and against a chain of known probabilities."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.errors import InputError
from increlora_jax.generation.generate import GenerationOptions, generate
from increlora_jax.models.registry import load_model
from tests.causal import PAD, VOCAB_SIZE, Prompts, save_reference

NEW = 10
PROMPTS = Prompts.draw(0, 3, 5, 1)
ONE_LAYER = {"gpt2": {"n_layer": 1}, "mistral": {"num_hidden_layers": 1, "sliding_window": 4}}


class Chain(nnx.Module):
    """The next token depends on the last one only."""

    continues_prompt = True

    def __init__(self, logits):
        self.logits = nnx.Param(jnp.asarray(logits, jnp.float32))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def begin(self, input_ids, attention_mask, max_new_tokens):
        return self.advance(input_ids[:, -1], jnp.zeros(len(input_ids)))

    def advance(self, tokens, cache):
        return self.dropout(self.logits[...][tokens]), cache + 1


def draw_chain(size=5, seed=0):
    return Chain(2 * np.random.default_rng(seed).normal(size=(size, size)))


def write(model, prompts, **options):
    prompts = jnp.asarray(prompts)
    return np.asarray(
        generate(model, prompts, jnp.ones_like(prompts), GenerationOptions(**options))
    )


@pytest.fixture(scope="module", params=["gpt2"])
def pair(request, tmp_path_factory):
    """PyTorch's model and ours, of the same random weights."""
    folder = tmp_path_factory.mktemp("model")
    reference = save_reference(folder, request.param, **ONE_LAYER[request.param])
    model, _ = load_model(folder, head="causal_lm")  # dropout is on; generation turns it off
    return reference, model


def write_both(pair, **options):
    """Write with both models; PyTorch's result is cut off where all rows have ended."""
    reference, model = pair
    ids, mask, _ = PROMPTS
    options |= {"max_new_tokens": NEW, "pad_token_id": PAD}
    ours = generate(model, jnp.asarray(ids), jnp.asarray(mask), GenerationOptions(**options))
    if isinstance(ends := options.get("eos_token_id"), tuple):
        options["eos_token_id"] = list(ends)
    prompts = PROMPTS.to_torch("input_ids", "attention_mask")
    theirs = reference.generate(**prompts, **options, do_sample=False).numpy()[:, ids.shape[1] :]
    rest = ((0, 0), (0, NEW - theirs.shape[1]))
    return np.asarray(ours), np.pad(theirs, rest, constant_values=PAD)


def find_early_end(pair):
    """A token that ends some rows of greedy search before others."""
    plain, _ = write_both(pair)
    counts = {token: (plain == token).any(1).sum() for token in range(PAD + 1, VOCAB_SIZE)}
    return next(token for token, count in counts.items() if 0 < count < len(plain))


@pytest.mark.parametrize(
    ("pair", "options"),
    [
        ("gpt2", {"min_new_tokens": 6, "no_repeat_ngram_size": 2}),
        ("gpt2", {"num_beams": 3, "early_stopping": True, "length_penalty": 2.0}),
        ("gpt2", {"num_beams": 4, "early_stopping": "never", "forced_eos_token_id": 9}),
        ("mistral", {"num_beams": 3, "no_repeat_ngram_size": 3, "min_new_tokens": 2}),
    ],
    indirect=["pair"],
    ids=str,
)
def test_tokens_equal_pytorchs(options, pair):
    end = find_early_end(pair)
    # A second end, so that as many more candidates are looked at.
    ours, theirs = write_both(pair, eos_token_id=(end, VOCAB_SIZE - 1), **options)
    np.testing.assert_array_equal(ours, theirs)


def test_greedy_search_ends_rows_early_as_pytorch_does(pair):
    end = find_early_end(pair)
    ours, theirs = write_both(pair, eos_token_id=end)
    np.testing.assert_array_equal(ours, theirs)
    has_end = (ours == end).any(1)
    assert has_end.any()
    assert not has_end.all()


@pytest.mark.parametrize("seed", range(3))
def test_enough_beams_find_the_likeliest_sequence(seed):
    """With a beam for every sequence, nothing that could still win is dropped."""
    size, length = 4, 3
    chain = draw_chain(size, seed)
    scores = jax.nn.log_softmax(chain.logits[...])
    paths = list(product(range(size), repeat=length))
    sums = [sum(scores[a, b] for a, b in zip((2, *path), path, strict=False)) for path in paths]
    found = write(chain, [[2]], max_new_tokens=length, num_beams=size ** (length - 1))
    assert tuple(found[0]) == paths[np.argmax(sums)]


def test_length_penalty_chooses_between_short_and_long():
    """From 0: the end at once (probability 0.5), or 1 (0.4) and then the end for sure."""
    chain = Chain(np.log([[0.1, 0.4, 0.5], [1e-9, 1e-9, 1.0], [1e-9, 1e-9, 1.0]]))
    options = {"max_new_tokens": 3, "num_beams": 2, "eos_token_id": 2, "pad_token_id": 0}
    short, long = ([2, 0, 0], [1, 2, 0])
    never = {"early_stopping": "never"}
    assert write(chain, [[0]], length_penalty=0.0, **never, **options)[0].tolist() == short
    # log 0.4 / 2 > log 0.5
    assert write(chain, [[0]], length_penalty=1.0, **never, **options)[0].tolist() == long


def test_draws_follow_the_chain():
    chain, count = draw_chain(), 4096
    prompts = jnp.full((count, 1), 3)
    options = GenerationOptions(max_new_tokens=2, do_sample=True, temperature=0.8)
    tokens = generate(chain, prompts, prompts, options, jax.random.key(0))
    step = np.asarray(jax.nn.softmax(chain.logits[...] / 0.8))
    for column, expected in ((0, step[3]), (1, step[3] @ step)):
        shares = np.bincount(tokens[:, column], minlength=5) / count
        # Five standard errors of a share.
        np.testing.assert_array_less(abs(shares - expected), 5 * np.sqrt(0.25 / count))
    assert set(np.asarray(generate(chain, prompts, prompts, options, jax.random.key(1)).ravel()))


def test_draws_follow_their_key():
    chain, prompts = draw_chain(), jnp.arange(5)[:, None]
    options = GenerationOptions(max_new_tokens=20, do_sample=True)
    first, again, other = (
        generate(chain, prompts, prompts, options, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(set(np.asarray(first[0]))) > 1  # each step has a draw of its own


def test_a_draw_among_one_is_greedy():
    chain, prompts = draw_chain(), [[0], [1], [2]]
    options = GenerationOptions(max_new_tokens=6, do_sample=True, top_k=1)
    drawn = generate(chain, jnp.array(prompts), jnp.ones((3, 1)), options, jax.random.key(0))
    np.testing.assert_array_equal(drawn, write(chain, prompts, max_new_tokens=6))


def test_only_new_tokens_return_and_what_follows_the_end_is_padding():
    step = np.full((5, 5), -9.0)
    step[[0, 1, 2, 4], [1, 2, 4, 4]] = 9.0  # 0, 1, 2, 4, 4 …
    chain = Chain(step)
    prompts = [[4, 0], [0, 2]]
    assert write(chain, prompts, max_new_tokens=4).tolist() == [[1, 2, 4, 4], [4, 4, 4, 4]]
    ended = {"max_new_tokens": 4, "eos_token_id": 4}
    padded = [[1, 2, 4, 3], [4, 3, 3, 3]]
    assert write(chain, prompts, pad_token_id=3, **ended).tolist() == padded
    assert write(chain, prompts, pad_token_id=3, num_beams=2, **ended).tolist() == padded
    assert write(chain, prompts, **ended).tolist() == [[1, 2, 4, 4], [4, 4, 4, 4]]


def test_generation_compiles_once_and_leaves_the_model_as_it_is():
    chain = draw_chain()
    key = jax.random.key_data(chain.dropout.rngs.key[...])
    traces = []
    advance, Chain.advance = Chain.advance, lambda *args: traces.append(0) or advance(*args)
    try:
        for prompt in ([[0]], [[1]]):
            write(chain, prompt, max_new_tokens=7)
    finally:
        Chain.advance = advance
    assert len(traces) == 2  # once to begin with, once in the loop
    assert not chain.dropout.deterministic
    np.testing.assert_array_equal(jax.random.key_data(chain.dropout.rngs.key[...]), key)


def test_a_draw_without_a_key_is_refused():
    with pytest.raises(InputError, match=r"do_sample needs a random key.*jax\.random\.key"):
        write(draw_chain(), [[0]], max_new_tokens=2, do_sample=True)

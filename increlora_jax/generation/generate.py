"""Text from a generative model: greedy, sampled or by beam search.

Generation is one compiled program of static shapes. A model needs only the methods of
`GenerativeModel`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from increlora_jax.errors import InputError
from increlora_jax.generation.beam_search import BeamSearch
from increlora_jax.generation.token_scores import GenerationOptions, constrain_scores, narrow_scores


class GenerativeModel(Protocol):
    """A model as `generate` needs it.

    A cache is a pytree of arrays of static shape with a leading batch axis, so that indexing
    repeats and reorders its rows.

    Attributes:
        continues_prompt: Whether the new tokens follow the prompt in one sequence, as in a causal
            model; otherwise a decoder has its own sequence.
    """

    continues_prompt: bool

    def begin(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        max_new_tokens: int,
    ) -> tuple[Float[Array, "batch vocab"], PyTree]:
        """Read the prompt; return the first new token's logits and a cache with room for all."""

    def advance(
        self, tokens: Int[Array, " batch"], cache: PyTree
    ) -> tuple[Float[Array, "batch vocab"], PyTree]:
        """Read one more token of each row; return the next token's logits and the cache."""


class Written(NamedTuple):
    """Sequences, one a row, between two tokens; the first `filled` slots hold tokens."""

    tokens: Int[Array, "batch slots"]
    has_ended: Bool[Array, " batch"]
    filled: Int[Array, ""]

    @property
    def last(self) -> Int[Array, " batch"]:
        """The newest tokens."""
        return jax.lax.dynamic_index_in_dim(self.tokens, self.filled - 1, 1, keepdims=False)


@dataclass(frozen=True)
class TokenSearch:
    """Choice of one token after the other: the likeliest, or a sampled one.

    Attributes:
        options: Settings of the choice.
        start: Number of tokens before the first new one.
        key: Random key for sampling; None takes the likeliest.
    """

    options: GenerationOptions
    start: int
    key: Array | None

    def begin(self, tokens: Int[Array, "batch slots"]) -> Written:
        """Start from the prompt with room for the new tokens."""
        has_ended = jnp.zeros(tokens.shape[0], bool)
        return Written(tokens, has_ended, filled=jnp.array(self.start))

    def choose(
        self, written: Written, logits: Float[Array, "batch vocab"], cache: PyTree
    ) -> tuple[Written, PyTree]:
        """Append a token to every row that has not ended; the cache is unchanged."""
        tokens, has_ended, filled = written
        scores = constrain_scores(logits, tokens, filled, self.start, self.options)
        if self.key is None:
            chosen = scores.argmax(-1)
        else:
            key = jax.random.fold_in(self.key, filled)
            chosen = jax.random.categorical(key, narrow_scores(scores, self.options))
        chosen = jnp.where(has_ended, self.options.padding, chosen)
        tokens = tokens.at[:, filled].set(chosen)
        return Written(tokens, has_ended | self.options.is_end(chosen), filled + 1), cache

    def is_open(self, written: Written) -> Bool[Array, ""]:
        """Return whether any row continues."""
        return ~written.has_ended.all() & (written.filled < written.tokens.shape[1])

    def finish(self, written: Written) -> Int[Array, "batch slots"]:
        """Return the sequences."""
        return written.tokens


def generate(
    model: GenerativeModel,
    input_ids: Int[Array, "batch length"],
    attention_mask: Int[Array, "batch length"],
    options: GenerationOptions,
    key: Array | None = None,
) -> Int[Array, "batch new"]:
    """Generate up to `options.max_new_tokens` tokens after each prompt, without dropout.

    Args:
        model: The model.
        input_ids: The prompts, int [batch, length].
        attention_mask: 1 for tokens, 0 for padding, int [batch, length].
        options: Settings of the choice of tokens.
        key: Random key; needed for `do_sample`.

    Returns:
        The new tokens only, int [batch, max_new_tokens], each row padded after its end.

    Raises:
        InputError: If sampling lacks a key, or the model lacks positions for so many tokens.
    """
    if options.do_sample and key is None:
        raise InputError("do_sample needs a random key. Give key=jax.random.key(seed)")
    graph, weights = nnx.split(model)
    drawn_with = key if options.do_sample else None
    return _generate(graph, weights, input_ids, attention_mask, options, drawn_with)


@partial(jax.jit, static_argnames=("graph", "options"))
def _generate(
    graph: Any,
    weights: PyTree,
    input_ids: Int[Array, "batch length"],
    attention_mask: Int[Array, "batch length"],
    options: GenerationOptions,
    key: Array | None,
) -> Int[Array, "batch new"]:
    def open_model() -> Any:
        model = nnx.merge(graph, weights)
        model.eval()
        return model

    model = open_model()
    history = input_ids if model.continues_prompt else input_ids[:, :0]
    start = history.shape[1]
    search = (
        BeamSearch(options, start) if options.num_beams > 1 else TokenSearch(options, start, key)
    )
    room = ((0, 0), (0, options.max_new_tokens))
    state: Any = search.begin(jnp.pad(history, room, constant_values=options.padding))
    logits, cache = model.begin(input_ids, attention_mask, options.max_new_tokens)
    logits, cache = jax.tree.map(
        lambda array: jnp.repeat(array, options.num_beams, axis=0), (logits, cache)
    )

    def take_step(carry: tuple[Any, PyTree]) -> tuple[Any, PyTree]:
        # Rebuild the module inside the loop: one made outside could not be changed there.
        logits, cache = open_model().advance(carry[0].last, carry[1])
        return search.choose(carry[0], logits, cache)

    first: tuple[Any, PyTree] = search.choose(state, logits, cache)
    state, _ = jax.lax.while_loop(lambda carry: search.is_open(carry[0]), take_step, first)
    return search.finish(state)[:, start:]

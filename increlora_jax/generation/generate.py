"""Text from a model that writes token by token: greedy, drawn or by beam search.

The whole of it is one compiled program of static shapes; only `GenerativeModel` is asked of a
model.
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

    A cache is a pytree of arrays of static shape that all have a leading batch axis, so that rows
    are repeated and reordered by indexing it.

    Attributes:
        continues_prompt: the new tokens follow those of the prompt in one sequence, as a causal
            model's do, and not in a decoder's own.
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
    """One sequence per row, between two tokens; `filled` slots hold tokens."""

    tokens: Int[Array, "batch slots"]
    has_ended: Bool[Array, " batch"]
    filled: Int[Array, ""]

    @property
    def last(self) -> Int[Array, " batch"]:
        """The tokens written last."""
        return jax.lax.dynamic_index_in_dim(self.tokens, self.filled - 1, 1, keepdims=False)


@dataclass(frozen=True)
class TokenSearch:
    """Writes one token after the other: the likeliest, or one that is drawn.

    Attributes:
        options: how tokens are chosen.
        start: how many tokens of history stand before the first new one.
        key: what is drawn with; None takes the likeliest.
    """

    options: GenerationOptions
    start: int
    key: Array | None

    def begin(self, tokens: Int[Array, "batch slots"]) -> Written:
        """Set out from the history with room for the new tokens."""
        has_ended = jnp.zeros(tokens.shape[0], bool)
        return Written(tokens, has_ended, filled=jnp.array(self.start))

    def choose(
        self, written: Written, logits: Float[Array, "batch vocab"], cache: PyTree
    ) -> tuple[Written, PyTree]:
        """Write a token in every row that has not ended; the cache stays as it is."""
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
        """Tell whether any row goes on."""
        return ~written.has_ended.all() & (written.filled < written.tokens.shape[1])

    def finish(self, written: Written) -> Int[Array, "batch slots"]:
        """Take the sequences."""
        return written.tokens


def generate(
    model: GenerativeModel,
    input_ids: Int[Array, "batch length"],
    attention_mask: Int[Array, "batch length"],
    options: GenerationOptions,
    key: Array | None = None,
) -> Int[Array, "batch new"]:
    """Write up to `options.max_new_tokens` tokens after each prompt; dropout is off.

    Returns the new tokens only, each row padded after its end.

    Raises:
        InputError: a draw is asked for without a key, or there is no room for so many tokens.
    """
    if options.do_sample and key is None:
        raise InputError("do_sample needs a key to draw with; give key=jax.random.key(seed)")
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
        # Opened anew: a module made outside the loop could not be changed in it.
        logits, cache = open_model().advance(carry[0].last, carry[1])
        return search.choose(carry[0], logits, cache)

    first: tuple[Any, PyTree] = search.choose(state, logits, cache)
    state, _ = jax.lax.while_loop(lambda carry: search.is_open(carry[0]), take_step, first)
    return search.finish(state)[:, start:]

"""Beam search with Hugging Face's choices, in arrays of static shape."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from increlora_jax.generation.token_scores import GenerationOptions, constrain_scores

# Hugging Face's replacement for −inf where such numbers are added or compared.
FAR_BELOW = -1e9


class Beams(NamedTuple):
    """State of a beam search between two tokens; the first `filled` slots hold tokens.

    `tokens` and `scores` (log probabilities) are those of the open beams, best first. The arrays
    `ended_*` hold the best ended sequences. Their scores are divided by length to the power
    `length_penalty`.
    """

    tokens: Int[Array, "batch beams slots"]
    scores: Float[Array, "batch beams"]
    ended_tokens: Int[Array, "batch beams slots"]
    ended_scores: Float[Array, "batch beams"]
    has_ended: Bool[Array, "batch beams"]
    can_improve: Bool[Array, " batch"]
    has_open: Bool[Array, ""]
    filled: Int[Array, ""]

    @property
    def last(self) -> Int[Array, " rows"]:
        """The newest tokens; the beams of one example are adjacent."""
        newest = jax.lax.dynamic_index_in_dim(self.tokens, self.filled - 1, 2, keepdims=False)
        return newest.reshape(-1)


class Candidates(NamedTuple):
    """The likeliest continuations of an example's beams, best first."""

    tokens: Int[Array, "batch candidates slots"]
    scores: Float[Array, "batch candidates"]
    parents: Int[Array, "batch candidates"]
    is_ended: Bool[Array, "batch candidates"]


@dataclass(frozen=True)
class BeamSearch:
    """Search for the `num_beams` likeliest open sequences of every example.

    Attributes:
        options: Settings of the choice of tokens.
        start: Number of tokens before the first new one.
    """

    options: GenerationOptions
    start: int

    def begin(self, tokens: Int[Array, "batch slots"]) -> Beams:
        """Start from the prompt with room for the new tokens; only the first beam counts."""
        batch, beams = tokens.shape[0], self.options.num_beams
        tokens = jnp.repeat(tokens[:, None], beams, axis=1)
        low = jnp.full((batch, beams), FAR_BELOW)
        return Beams(
            tokens=tokens,
            scores=low.at[:, 0].set(0),
            ended_tokens=tokens,
            ended_scores=low,
            has_ended=jnp.zeros((batch, beams), bool),
            can_improve=jnp.ones(batch, bool),
            has_open=jnp.array(True),
            filled=jnp.array(self.start),
        )

    def choose(
        self, beams: Beams, logits: Float[Array, "rows vocab"], cache: PyTree
    ) -> tuple[Beams, PyTree]:
        """Keep the likeliest continuations by one token, and their parents' rows of the cache."""
        candidates = self._list_candidates(beams, logits)
        open_scores = candidates.scores + FAR_BELOW * candidates.is_ended
        scores, chosen = jax.lax.top_k(open_scores, self.options.num_beams)
        parents = jnp.take_along_axis(candidates.parents, chosen, 1)
        ended_tokens, ended_scores, has_ended = self._merge_ended(beams, candidates)
        after = beams._replace(
            tokens=_take(candidates.tokens, chosen),
            scores=scores,
            ended_tokens=ended_tokens,
            ended_scores=ended_scores,
            has_ended=has_ended,
            has_open=~candidates.is_ended.all(),
            filled=beams.filled + 1,
        )
        after = after._replace(can_improve=self._can_improve(after))
        rows = self.options.num_beams * jnp.arange(parents.shape[0])[:, None] + parents
        return after, jax.tree.map(lambda array: array[rows.ravel()], cache)

    def _list_candidates(self, beams: Beams, logits: Float[Array, "rows vocab"]) -> Candidates:
        batch, width, slots = beams.tokens.shape
        scores = jax.nn.log_softmax(logits)
        flat = beams.tokens.reshape(-1, slots)
        scores = constrain_scores(scores, flat, beams.filled, self.start, self.options)
        scores = scores.reshape(batch, width, -1) + beams.scores[..., None]
        # If each beam's best tokens are ends, this many candidates still leave `num_beams` open.
        kept = max(2, 1 + len(self.options.ends)) * width
        best, index = jax.lax.top_k(scores.reshape(batch, -1), kept)
        parents, words = jnp.divmod(index, logits.shape[-1])
        tokens = _take(beams.tokens, parents).at[:, :, beams.filled].set(words)
        is_last = beams.filled + 1 == slots
        return Candidates(tokens, best, parents, self.options.is_end(words) | is_last)

    def _merge_ended(
        self, beams: Beams, candidates: Candidates
    ) -> tuple[Int[Array, "batch beams slots"], Float[Array, "batch beams"], Bool[Array, "..."]]:
        """Keep the best of the sequences that ended before and now."""
        width = self.options.num_beams
        # Candidates below the beams only keep beams open; they may not end.
        is_new = candidates.is_ended & (jnp.arange(candidates.scores.shape[1]) < width)
        is_closed = ~beams.can_improve
        if self.options.early_stopping is True:
            is_closed |= beams.has_ended.all(1)
        length = beams.filled + 1 - self.start
        scores = candidates.scores / length**self.options.length_penalty
        scores += FAR_BELOW * is_closed[:, None] + FAR_BELOW * ~is_new
        best, chosen = jax.lax.top_k(jnp.concatenate([beams.ended_scores, scores], 1), width)
        tokens = jnp.concatenate([beams.ended_tokens, candidates.tokens], 1)
        has_ended = jnp.concatenate([beams.has_ended, is_new], 1)
        return _take(tokens, chosen), best, jnp.take_along_axis(has_ended, chosen, 1)

    def _can_improve(self, beams: Beams) -> Bool[Array, " batch"]:
        """Return for each example whether the best open beam may still beat the worst ended one."""
        options = self.options
        is_for_length = options.early_stopping == "never" and options.length_penalty > 0
        length = options.max_new_tokens if is_for_length else beams.filled - self.start
        hoped = beams.scores[:, :1] / length**options.length_penalty
        worst = beams.ended_scores.min(1, keepdims=True)
        is_better = hoped > jnp.where(beams.has_ended, worst, FAR_BELOW)
        return beams.can_improve & is_better.any(1)

    def is_open(self, beams: Beams) -> Bool[Array, ""]:
        """Return whether any example's search continues."""
        goes_on = beams.can_improve.any() & beams.has_open
        if self.options.early_stopping is True:
            goes_on &= ~beams.has_ended.all()
        return goes_on

    def finish(self, beams: Beams) -> Int[Array, "batch slots"]:
        """Return every example's best sequence."""
        return beams.ended_tokens[:, 0]


def _take(
    tokens: Int[Array, "batch beams slots"], chosen: Int[Array, "batch kept"]
) -> Int[Array, "batch kept slots"]:
    return jnp.take_along_axis(tokens, chosen[..., None], axis=1)

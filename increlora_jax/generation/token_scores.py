"""Changes to the next token's scores before one is chosen.

Names, order and meaning are those of Hugging Face's generation. A forbidden token scores −inf.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.errors import InputError


@dataclass(frozen=True)
class GenerationOptions:
    """Settings of the choice of new tokens, under Hugging Face's names.

    Raises:
        InputError: If a value is out of its range, or two values exclude each other.

    Attributes:
        max_new_tokens: Largest number of new tokens, and the width of the result.
        num_beams: 1 follows one sequence; more is a beam search.
        do_sample: Sample each token instead of taking the likeliest.
        temperature: Divisor of the scores before sampling.
        top_k: Sample among the k likeliest tokens; 0 takes all.
        top_p: Sample among the fewest tokens that have this probability together.
        length_penalty: A beam's log probability is divided by its length to this power.
        early_stopping: End of a beam search. True: as many ended beams as beams. False: the best
            open beam would be worse if it ended now. "never": no open beam could get better.
        eos_token_id: The token or tokens that end a sequence; None: sequences have full length.
        pad_token_id: The token after an end; None: the (first) end.
        min_new_tokens: Number of new tokens before an end is allowed.
        no_repeat_ngram_size: Size of token sequences that may not repeat, prompt included; 0: all
            may.
        forced_bos_token_id: The first new token.
        forced_eos_token_id: The last token of a sequence that has not ended before.
    """

    max_new_tokens: int
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("max_new_tokens", 1),
            ("num_beams", 1),
            ("top_k", 0),
            ("min_new_tokens", 0),
            ("no_repeat_ngram_size", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}. Give at least {least}")
        if self.temperature <= 0:
            raise InputError(
                f"temperature is {self.temperature}. Give more than 0, or leave do_sample out to "
                "take the likeliest token"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}. Give more than 0 and at most 1")
        if self.do_sample and self.num_beams > 1:
            raise InputError(
                f"do_sample and num_beams {self.num_beams} exclude each other. Leave one out"
            )

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a sequence."""
        given = self.eos_token_id
        return () if given is None else (given,) if isinstance(given, int) else tuple(given)

    @property
    def padding(self) -> int:
        """Token for padding; 0 if no token ends a sequence."""
        if self.pad_token_id is not None:
            return self.pad_token_id
        return self.ends[0] if self.ends else 0

    def is_end(self, tokens: Int[Array, "*shape"]) -> Bool[Array, "*shape"]:
        """Return which tokens end a sequence."""
        return jnp.isin(tokens, jnp.array(self.ends, tokens.dtype))


def constrain_scores(
    scores: Float[Array, "rows vocab"],
    tokens: Int[Array, "rows slots"],
    filled: Int[Array, ""],
    start: int,
    options: GenerationOptions,
) -> Float[Array, "rows vocab"]:
    """Set the scores of forbidden tokens to −inf.

    Args:
        scores: Scores of the next token, [rows, vocab].
        tokens: The sequences, [rows, slots].
        filled: Number of filled slots.
        start: Slot of the first new token.
        options: Settings of the choice.

    Returns:
        The scores, [rows, vocab].
    """
    vocabulary = jnp.arange(scores.shape[-1])
    lowest = -jnp.inf
    if options.no_repeat_ngram_size:
        repeats = _find_repeats(tokens, filled, options.no_repeat_ngram_size, vocabulary.size)
        scores = jnp.where(repeats, lowest, scores)
    if options.min_new_tokens:
        is_early = filled - start < options.min_new_tokens
        scores = jnp.where(is_early & options.is_end(vocabulary), lowest, scores)
    for forced, slot in (
        (options.forced_bos_token_id, start),
        (options.forced_eos_token_id, start + options.max_new_tokens - 1),
    ):
        if forced is not None:
            only = jnp.where(vocabulary == forced, 0.0, lowest)
            scores = jnp.where(filled == slot, only, scores)
    return scores


def _find_repeats(
    tokens: Int[Array, "rows slots"], filled: Int[Array, ""], size: int, vocab_size: int
) -> Bool[Array, "rows vocab"]:
    """Find the tokens that would repeat an earlier sequence of `size` tokens."""
    rows, slots = tokens.shape
    if slots < size:
        return jnp.zeros((rows, vocab_size), bool)
    starts = jnp.arange(slots - size + 1)
    windows = tokens[:, starts[:, None] + jnp.arange(size)]
    recent = jax.lax.dynamic_slice_in_dim(tokens, filled - size + 1, size - 1, axis=1)
    is_repeat = (windows[..., :-1] == recent[:, None]).all(-1) & (starts + size <= filled)
    banned = jnp.zeros((rows, vocab_size), bool)
    return banned.at[jnp.arange(rows)[:, None], windows[..., -1]].max(is_repeat)


def narrow_scores(
    scores: Float[Array, "rows vocab"], options: GenerationOptions
) -> Float[Array, "rows vocab"]:
    """Turn scores into logits for sampling: temperature, then top k, then top p."""
    scores = scores / options.temperature
    if 0 < options.top_k < scores.shape[-1]:
        least = jax.lax.top_k(scores, options.top_k)[0][:, -1:]
        scores = jnp.where(scores < least, -jnp.inf, scores)
    if options.top_p < 1:
        order = jnp.argsort(scores, axis=-1)  # ascending
        below = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(scores, order, -1), -1), -1)
        is_cut = (below <= 1 - options.top_p).at[:, -1].set(False)
        is_cut = jnp.take_along_axis(is_cut, jnp.argsort(order, axis=-1), -1)
        scores = jnp.where(is_cut, -jnp.inf, scores)
    return scores

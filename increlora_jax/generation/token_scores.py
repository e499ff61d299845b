"""Changes to the scores of the next token before one is chosen.

Names, order and meaning are those of Hugging Face's generation; what is ruled out scores −inf.
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

    Attributes:
        max_new_tokens: how many tokens are written at most, and how wide the result is.
        num_beams: 1 follows one sequence; more is a beam search.
        do_sample: draw each token instead of taking the likeliest.
        temperature: divides the scores before a draw.
        top_k: a draw is among the k likeliest tokens; 0 is all of them.
        top_p: a draw is among the fewest tokens that have this probability together.
        length_penalty: a beam's log probability is divided by its length to this power.
        early_stopping: end a beam search when there are as many ended beams as beams (True), when
            the best open beam would be worse if it ended now (False), or when no open beam could
            get better ("never").
        eos_token_id: the token, or tokens, that end a sequence; None goes on to the last.
        pad_token_id: what follows the end; None repeats the (first) end.
        min_new_tokens: no end before so many tokens.
        no_repeat_ngram_size: no n tokens in a row come twice, prompt included; 0 lets them.
        forced_bos_token_id: what the first new token is.
        forced_eos_token_id: what the last token is, of a sequence that has not ended before.

    Raises:
        InputError: a value is out of its range, or two do not go together.
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
                raise InputError(f"{name} is {getattr(self, name)}; give at least {least}")
        if self.temperature <= 0:
            raise InputError(
                f"temperature is {self.temperature}; give more than 0, or leave do_sample out to "
                "take the likeliest token"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; give more than 0 and at most 1")
        if self.do_sample and self.num_beams > 1:
            raise InputError(
                f"do_sample and num_beams {self.num_beams} do not go together here; leave one out"
            )

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a sequence."""
        given = self.eos_token_id
        return () if given is None else (given,) if isinstance(given, int) else tuple(given)

    @property
    def padding(self) -> int:
        """The token that pads; 0 if nothing ends."""
        if self.pad_token_id is not None:
            return self.pad_token_id
        return self.ends[0] if self.ends else 0

    def is_end(self, tokens: Int[Array, "*shape"]) -> Bool[Array, "*shape"]:
        """Tell which tokens end a sequence."""
        return jnp.isin(tokens, jnp.array(self.ends, tokens.dtype))


def constrain_scores(
    scores: Float[Array, "rows vocab"],
    tokens: Int[Array, "rows slots"],
    filled: Int[Array, ""],
    start: int,
    options: GenerationOptions,
) -> Float[Array, "rows vocab"]:
    """Rule out what the options forbid next, after `filled` slots, new ones from slot `start`."""
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
    """Find the tokens that would make the last `size` tokens equal to `size` earlier ones."""
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
    """Turn scores into the logits of a draw: temperature, then the top k, then the top p."""
    scores = scores / options.temperature
    if 0 < options.top_k < scores.shape[-1]:
        least = jax.lax.top_k(scores, options.top_k)[0][:, -1:]
        scores = jnp.where(scores < least, -jnp.inf, scores)
    if options.top_p < 1:
        order = jnp.argsort(scores, axis=-1)  # from the least likely on
        below = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(scores, order, -1), -1), -1)
        is_cut = (below <= 1 - options.top_p).at[:, -1].set(False)
        is_cut = jnp.take_along_axis(is_cut, jnp.argsort(order, axis=-1), -1)
        scores = jnp.where(is_cut, -jnp.inf, scores)
    return scores

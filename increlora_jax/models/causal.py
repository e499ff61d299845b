"""Shared parts of causal language models: attention to the past, its cache, and the heads."""

from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.models.attention import KeyValue
from increlora_jax.models.heads import (
    HeadedModel,
    QuestionAnswerer,
    SequenceClassifier,
    Tokens,
    compare_with_words,
)
from increlora_jax.models.layers import LayerFactory, at_least_float32
from increlora_jax.models.taking import Take, take_all, take_places

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Span(NamedTuple):
    """Consecutive tokens that a model reads at once, with the slots of all tokens so far.

    Attributes:
        positions: Position of each token in its sequence, padding not counted.
        is_token: Mask of the slots that hold tokens, including the span's.
        first: Slot of the span's first token.
    """

    positions: Int[Array, "batch length"]
    is_token: Bool[Array, "batch slots"]
    first: Int[Array, ""] | int

    @classmethod
    def from_start(cls, attention_mask: Int[Array, "batch length"]) -> Self:
        """Return the span of whole sequences, padded on either side."""
        is_token = attention_mask > 0
        return cls(jnp.maximum(jnp.cumsum(is_token, axis=1) - 1, 0), is_token, 0)

    def extend(
        self,
        past: KeyValue | None,
        key: Float[Array, "batch length heads size"],
        value: Float[Array, "batch length heads size"],
    ) -> KeyValue:
        """Add the span's keys and values to the past, if there is one."""
        new = KeyValue(key, value)
        return new if past is None else past.write(new, self.first)

    def find_visible(self, window: int | None = None) -> Bool[Array, "batch 1 length slots"]:
        """Return the slots each token sees: the last `window` up to itself, without padding."""
        slots = jnp.arange(self.is_token.shape[1])
        own = self.first + jnp.arange(self.positions.shape[1])[:, None]
        is_near = slots <= own
        if window is not None:
            is_near &= slots > own - window
        return is_near & self.is_token[:, None, None]


class CausalCache(NamedTuple):
    """State of `CausalLM.advance` after some tokens; every array has a leading batch axis."""

    layers: tuple[KeyValue, ...]
    is_token: Bool[Array, "batch slots"]
    used: Int[Array, " batch"]
    """Number of filled slots, equal in all rows, so that rows can be reordered."""


def take_last_token(attention_mask: Int[Array, "batch length"]) -> Take:
    """Take each row's last token that is not padding, with padding on either side."""
    slots = jnp.arange(attention_mask.shape[1])
    return take_places(jnp.argmax(slots * (attention_mask > 0), axis=1))


class CausalBody(Protocol):
    """A model's body as the heads need it.

    Attributes:
        words: The table of word embeddings.
    """

    words: nnx.Embed

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        span: Span,
        past: tuple[KeyValue, ...] | None = None,
        take: Take = take_all,
    ) -> tuple[Float[Array, "batch taken hidden"], tuple[KeyValue, ...]]:
        """Read tokens after the past; return the taken states, and the past with all tokens."""


class CausalModel(HeadedModel):
    """A causal model with a head; its body has no token types."""

    @property
    def body(self) -> CausalBody:
        """The model without its head."""
        return super().body

    def encode(self, tokens: Tokens, take: Take = take_all) -> Float[Array, "batch taken hidden"]:
        """Read whole sequences; return the states that `take` takes."""
        return self.body(tokens.input_ids, Span.from_start(tokens.attention_mask), take=take)[0]


class CausalLM(CausalModel):
    """Scores of the next token, by the word embeddings or an own matrix; also generates text.

    `config.tie_word_embeddings` chooses between the two. For generation see `generation`.
    """

    continues_prompt = True

    def add_head(self, config: "PretrainedConfig", make: LayerFactory) -> None:
        """Create the matrix of an untied head."""
        self.is_tied = config.tie_word_embeddings
        if not self.is_tied:
            self.lm_head = make.linear(config.hidden_size, config.vocab_size, use_bias=False)

    def __call__(
        self, input_ids: Int[Array, "batch length"], attention_mask: Int[Array, "batch length"]
    ) -> Float[Array, "batch length vocab"]:
        """Score the next token after each token; `attention_mask` is 1 on tokens, 0 on padding.

        Raises:
            InputError: If the sequences are longer than the model has positions.
        """
        hidden, _ = self.body(input_ids, Span.from_start(attention_mask))
        return self.score_words(hidden)

    def score_words(self, hidden: Float[Array, "*batch hidden"]) -> Float[Array, "*batch vocab"]:
        """Score every word of the vocabulary."""
        if self.is_tied:
            return compare_with_words(hidden, self.body.words)
        return self.lm_head(hidden).astype(at_least_float32(hidden.dtype))

    def begin(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        max_new_tokens: int,
    ) -> tuple[Float[Array, "batch vocab"], CausalCache]:
        """Read the prompts, padded on either side; return scores and a cache with free room."""
        batch, length = input_ids.shape
        span, last = Span.from_start(attention_mask), take_last_token(attention_mask)
        hidden, layers = self.body(input_ids, span, take=last)
        cache = CausalCache(
            layers=tuple(layer.pad(max_new_tokens) for layer in layers),
            is_token=jnp.pad(attention_mask > 0, ((0, 0), (0, max_new_tokens))),
            used=jnp.full(batch, length),
        )
        return self.score_words(hidden[:, 0]), cache

    def advance(
        self, tokens: Int[Array, " batch"], cache: CausalCache
    ) -> tuple[Float[Array, "batch vocab"], CausalCache]:
        """Read one more token of every row.

        Raises:
            InputError: If prompt and new tokens together exceed the model's positions.
        """
        slot = cache.used[0]
        is_token = cache.is_token.at[:, slot].set(True)
        positions = cache.is_token.sum(1, keepdims=True)
        hidden, layers = self.body(
            tokens[:, None], Span(positions, is_token, slot), past=cache.layers
        )
        return self.score_words(hidden[:, 0]), CausalCache(layers, is_token, cache.used + 1)


class CausalSequenceClassifier(CausalModel, SequenceClassifier):
    """A linear head without bias on each sequence's last token.

    By default it has no dropout, as in Hugging Face's models.
    """

    rate_names = ()

    def add_classifier(
        self, config: "PretrainedConfig", num_labels: int, rate: float, make: LayerFactory
    ) -> None:
        """Create the dropout and the linear layer."""
        self.dropout = make.dropout(rate)
        self.score = make.linear(config.hidden_size, num_labels, use_bias=False)

    def choose(self, tokens: Tokens) -> Take:
        """Take the last token, which sees all others."""
        return take_last_token(tokens.attention_mask)

    def compute_logits(self, state: Float[Array, "batch hidden"]) -> Float[Array, "batch labels"]:
        """Score each sequence."""
        return self.score(self.dropout(state))


class CausalQuestionAnswerer(CausalModel, QuestionAnswerer):
    """Scores of an answer's start and end."""

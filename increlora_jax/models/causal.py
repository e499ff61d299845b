"""What causal language models share: attention to the past, its cache, and the heads."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.models.layers import LayerFactory, at_least_float32

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class KeyValues(NamedTuple):
    """One layer's keys and values of all tokens so far."""

    key: Float[Array, "batch slots heads size"]
    value: Float[Array, "batch slots heads size"]

    def pad(self, room: int) -> Self:
        """Add empty slots at the end."""
        widths = ((0, 0), (0, room), (0, 0), (0, 0))
        return type(self)(*(jnp.pad(array, widths) for array in self))


class Span(NamedTuple):
    """Consecutive tokens that a model reads at once, among all tokens so far.

    Attributes:
      positions: each token's place in its sequence, padding not counted.
      is_token: which of all slots hold tokens, those of the span included.
      first: the slot of the span's first token.
    """

    positions: Int[Array, "batch length"]
    is_token: Bool[Array, "batch slots"]
    first: Int[Array, ""] | int

    @classmethod
    def from_start(cls, attention_mask: Int[Array, "batch length"]) -> Self:
        """Take whole sequences, padded on either side."""
        is_token = attention_mask > 0
        return cls(jnp.maximum(jnp.cumsum(is_token, axis=1) - 1, 0), is_token, 0)

    def extend(
        self,
        past: KeyValues | None,
        key: Float[Array, "batch length heads size"],
        value: Float[Array, "batch length heads size"],
    ) -> KeyValues:
        """Add the span's keys and values to those of the past, where there is one."""
        if past is None:
            return KeyValues(key, value)
        write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=self.first, axis=1)
        return KeyValues(write(past.key, key), write(past.value, value))

    def find_visible(self, window: int | None = None) -> Bool[Array, "batch length slots"]:
        """Tell which slots each token attends to: the last `window` up to itself, no padding."""
        slots = jnp.arange(self.is_token.shape[1])
        own = self.first + jnp.arange(self.positions.shape[1])[:, None]
        is_near = slots <= own
        if window is not None:
            is_near &= slots > own - window
        return is_near & self.is_token[:, None]


class CausalCache(NamedTuple):
    """What `CausalLM.advance` knows of the tokens so far; every array has a leading batch axis."""

    layers: tuple[KeyValues, ...]
    is_token: Bool[Array, "batch slots"]
    used: Int[Array, " batch"]
    """How many slots are filled: the same in every row, so that rows can be reordered."""


def attend(
    query: Float[Array, "batch length heads size"],
    past: KeyValues,
    is_visible: Bool[Array, "batch length slots"],
    scale: float,
    dropout: nnx.Dropout,
) -> Float[Array, "batch length features"]:
    """Mix the values of the visible slots; heads of queries share the fewer heads of keys.

    The softmax is in float32 at least.
    """
    batch, length, heads, size = query.shape
    shared = past.key.shape[2]
    query = query.reshape(batch, length, shared, heads // shared, size)
    wide = at_least_float32(query.dtype)
    scores = scale * jnp.einsum("bqhgd,bkhd->bhgqk", query, past.key, preferred_element_type=wide)
    # The lowest finite number and not −inf: a row of padding only must not become NaN.
    scores = jnp.where(is_visible[:, None, None], scores, jnp.finfo(wide).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(past.value.dtype))
    return jnp.einsum("bhgqk,bkhd->bqhgd", weights, past.value).reshape(batch, length, -1)


def take_last_token(
    hidden: Float[Array, "batch length hidden"], attention_mask: Int[Array, "batch length"]
) -> Float[Array, "batch hidden"]:
    """Take each row's last state that is not of padding, on whichever side the padding is."""
    slots = jnp.arange(hidden.shape[1])
    last = jnp.argmax(slots * (attention_mask > 0), axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


class CausalBody(Protocol):
    """What the heads ask of a model's body.

    Attributes:
      words: the table of word embeddings.
    """

    words: nnx.Embed

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        span: Span,
        past: tuple[KeyValues, ...] | None = None,
    ) -> tuple[Float[Array, "batch length hidden"], tuple[KeyValues, ...]]:
        """Read tokens after the past; return their states, and the past with them in it."""


class CausalModel(nnx.Module):
    """A body under Hugging Face's name for it; the heads below are its subclasses.

    An architecture's own head says what the body is and is called. All heads take

      config: the architecture, as `config.json` describes it;
      dtype: what is computed in; softmax, norm statistics and logits are float32 at least;
      param_dtype: what the parameters are stored in;
      rngs: the streams `params` and `dropout`;

    and raise InputError where the configuration asks for what the body does not do. New weights
    are N(0, `config.initializer_range`²), biases 0, norms 1 and 0.
    """

    body_name: ClassVar[str]
    make_body: ClassVar[Callable[..., nnx.Module]]

    def __init__(self, config: "PretrainedConfig", make: LayerFactory):
        setattr(self, self.body_name, type(self).make_body(config, make))

    @property
    def body(self) -> CausalBody:
        """The model without its head."""
        return getattr(self, self.body_name)

    def encode(
        self, input_ids: Int[Array, "batch length"], attention_mask: Int[Array, "batch length"]
    ) -> Float[Array, "batch length hidden"]:
        """Read whole sequences."""
        return self.body(input_ids, Span.from_start(attention_mask))[0]


class CausalLM(CausalModel):
    """Scores of the next token, by the word embeddings or a matrix of their own; also writes.

    `config.tie_word_embeddings` says which; for writing see `generation`.
    """

    continues_prompt = True

    def __init__(
        self,
        config: "PretrainedConfig",
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = LayerFactory(config.initializer_range, dtype, param_dtype, rngs)
        super().__init__(config, make)
        self.is_tied = config.tie_word_embeddings
        if not self.is_tied:
            self.lm_head = make.linear(config.hidden_size, config.vocab_size, use_bias=False)

    def __call__(
        self, input_ids: Int[Array, "batch length"], attention_mask: Int[Array, "batch length"]
    ) -> Float[Array, "batch length vocab"]:
        """Score what may follow each token; `attention_mask` is 1 on tokens, 0 on padding.

        Raises:
          InputError: the sequences are longer than the model has positions.
        """
        return self.score_words(self.encode(input_ids, attention_mask))

    def score_words(self, hidden: Float[Array, "*batch hidden"]) -> Float[Array, "*batch vocab"]:
        """Score every word of the vocabulary."""
        wide = at_least_float32(hidden.dtype)
        if not self.is_tied:
            return self.lm_head(hidden).astype(wide)
        table = self.body.words.embedding[...].astype(hidden.dtype)
        return jnp.einsum("...h,vh->...v", hidden, table, preferred_element_type=wide)

    def begin(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        max_new_tokens: int,
    ) -> tuple[Float[Array, "batch vocab"], CausalCache]:
        """Read the prompts, padded on either side, and make room for the new tokens."""
        batch, length = input_ids.shape
        hidden, layers = self.body(input_ids, Span.from_start(attention_mask))
        cache = CausalCache(
            layers=tuple(layer.pad(max_new_tokens) for layer in layers),
            is_token=jnp.pad(attention_mask > 0, ((0, 0), (0, max_new_tokens))),
            used=jnp.full(batch, length),
        )
        return self.score_words(take_last_token(hidden, attention_mask)), cache

    def advance(
        self, tokens: Int[Array, " batch"], cache: CausalCache
    ) -> tuple[Float[Array, "batch vocab"], CausalCache]:
        """Read one more token in every row.

        Raises:
          InputError: prompt and new tokens together are more than the model has positions.
        """
        slot = cache.used[0]
        is_token = cache.is_token.at[:, slot].set(True)
        positions = cache.is_token.sum(1, keepdims=True)
        hidden, layers = self.body(
            tokens[:, None], Span(positions, is_token, slot), past=cache.layers
        )
        return self.score_words(hidden[:, 0]), CausalCache(layers, is_token, cache.used + 1)


class CausalSequenceClassifier(CausalModel):
    """A linear head without bias on each sequence's last token; one label is regression.

    Further arguments: `num_labels` and `classifier_dropout`, the rate before the head; None is no
    dropout, as Hugging Face has none there.
    """

    def __init__(
        self,
        config: "PretrainedConfig",
        *,
        num_labels: int,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        classifier_dropout: float | None = None,
    ):
        make = LayerFactory(config.initializer_range, dtype, param_dtype, rngs)
        super().__init__(config, make)
        self.dropout = make.dropout(classifier_dropout or 0.0)
        self.score = make.linear(config.hidden_size, num_labels, use_bias=False)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
    ) -> Float[Array, "batch labels"]:
        """Score each sequence; these models have no token types, and leave them aside.

        Raises:
          InputError: the sequences are longer than the model has positions.
        """
        last = take_last_token(self.encode(input_ids, attention_mask), attention_mask)
        return self.score(self.dropout(last)).astype(at_least_float32(last.dtype))


class CausalQuestionAnswerer(CausalModel):
    """Scores of where an answer starts and ends."""

    def __init__(
        self,
        config: "PretrainedConfig",
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = LayerFactory(config.initializer_range, dtype, param_dtype, rngs)
        super().__init__(config, make)
        self.qa_outputs = make.linear(config.hidden_size, 2)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
        """Score every token as the start and as the end; token types are left aside.

        Raises:
          InputError: the sequences are longer than the model has positions.
        """
        logits = self.qa_outputs(self.encode(input_ids, attention_mask))
        logits = logits.astype(at_least_float32(logits.dtype))
        return logits[..., 0], logits[..., 1]

"""Shared parts of encoder-decoders: decoder inputs, the cache of generation, heads."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.models.attention import KeyValue
from increlora_jax.models.heads import (
    ClassificationHead,
    HeadedModel,
    QuestionAnswerer,
    SequenceClassifier,
    Tokens,
)
from increlora_jax.models.layers import LayerFactory
from increlora_jax.models.taking import Take, take_all, take_places

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Memory(NamedTuple):
    """Keys and values of a decoder layer from earlier calls.

    Attributes:
        target: Tokens so far, with room for later ones; None if all tokens are given at once.
        source: Keys and values of the encoded source.
    """

    target: KeyValue | None
    source: KeyValue


class Cache(NamedTuple):
    """State of a decoder besides its tokens; every array has a leading batch axis.

    Attributes:
        layers: One memory for each decoder layer.
        is_source: `[batch, source]`, mask of the source's tokens without padding.
        position: `[batch]`, position of the next token, equal in all rows; None if all tokens are
            given at once.
    """

    layers: tuple[Memory, ...]
    is_source: Array
    position: Array | None

    def next_slot(self) -> tuple[Array, int]:
        """Return the next token's position, and the number of slots."""
        target = self.layers[0].target
        assert target is not None
        assert self.position is not None
        return self.position[0], target.key.shape[1]

    def move_on(self, layers: Iterable[Memory]) -> "Cache":
        """Return the cache one token later, with the layers' new memories."""
        position = None if self.position is None else self.position + 1
        return Cache(tuple(layers), self.is_source, position)


def look_at(sources: Iterable[KeyValue], is_source: Bool[Array, "batch source"]) -> Cache:
    """Return the cache of a decoder that gets all its tokens at once."""
    return Cache(tuple(Memory(None, source) for source in sources), is_source, None)


def make_room(cache: Cache, length: int) -> Cache:
    """Return the cache with room for `length` tokens, given one at a time."""

    def empty(array: Array) -> Array:
        return jnp.zeros((array.shape[0], length, *array.shape[2:]), array.dtype)

    layers = tuple(Memory(jax.tree.map(empty, m.source), m.source) for m in cache.layers)
    return Cache(layers, cache.is_source, jnp.zeros(cache.is_source.shape[0], jnp.int32))


def remember(past: KeyValue | None, new: KeyValue, position: Array | None) -> KeyValue:
    """Write one token's key and value at its position; without a past, return them alone."""
    if past is None or position is None:
        return new
    return past.write(new, position[0])


def see_earlier(is_token: Bool[Array, "batch length"]) -> Bool[Array, "batch 1 length length"]:
    """Return the mask by which each token sees itself and earlier tokens, without padding."""
    length = is_token.shape[1]
    return jnp.tri(length, dtype=bool) & is_token[:, None, None, :]


def see_so_far(position: Int[Array, ""], room: int) -> Bool[Array, "1 1 1 room"]:
    """Return the mask by which the token at `position` sees itself and earlier tokens."""
    return (jnp.arange(room) <= position)[None, None, None]


def shift_right(ids: Int[Array, "batch length"], start: int) -> Int[Array, "batch length"]:
    """Turn target tokens into decoder inputs: `start` first, the last token dropped."""
    return jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=start)


def take_last_eos(
    input_ids: Int[Array, "batch length"],
    attention_mask: Int[Array, "batch length"],
    eos_token_id: int | list[int] | None,
) -> Take:
    """Take each row's last eos; without one, the last token before padding."""
    is_token = attention_mask > 0
    eos = jnp.asarray([] if eos_token_id is None else eos_token_id, jnp.int32)
    is_eos = jnp.isin(input_ids, eos) & is_token
    candidates = jnp.where(is_eos.any(-1, keepdims=True), is_eos, is_token)
    places = jnp.arange(input_ids.shape[1])
    return take_places(jnp.max(jnp.where(candidates, places, 0), axis=-1))


class EncoderDecoderBody(Protocol):
    """A model's body as the heads need it.

    Attributes:
        start_token_id: The first token of the decoder.
    """

    start_token_id: int

    def read(
        self, input_ids: Int[Array, "batch source"], attention_mask: Int[Array, "batch source"]
    ) -> Cache:
        """Encode the source, and return the cache of the decoder."""

    def decode(
        self,
        ids: Int[Array, "batch target"],
        is_token: Bool[Array, "batch target"],
        cache: Cache,
        take: Take = take_all,
    ) -> Float[Array, "batch taken hidden"]:
        """Decode all tokens at once, each from the earlier ones; return the taken states."""

    def decode_next(
        self, tokens: Int[Array, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch 1 hidden"], Cache]:
        """Decode one more token of each row."""


class EncoderDecoderModel(HeadedModel):
    """An encoder-decoder with a head; its body has two stacks and no token types."""

    @property
    def body(self) -> EncoderDecoderBody:
        """The model without its head."""
        return super().body

    def encode(self, tokens: Tokens, take: Take = take_all) -> Float[Array, "batch taken hidden"]:
        """Decode sequences with themselves as sources; return the states that `take` takes."""
        cache = self.body.read(tokens.input_ids, tokens.attention_mask)
        shifted = shift_right(tokens.input_ids, self.body.start_token_id)
        return self.body.decode(shifted, jnp.ones_like(shifted, bool), cache, take)


class Seq2SeqLM(EncoderDecoderModel):
    """Scores of the target's next token; also generates text, see `generation`."""

    continues_prompt = False

    @abstractmethod
    def score_words(
        self, hidden: Float[Array, "batch target hidden"]
    ) -> Float[Array, "batch target vocab"]:
        """Score every word of the vocabulary, float32 at least."""

    def __call__(
        self,
        input_ids: Int[Array, "batch source"],
        attention_mask: Int[Array, "batch source"],
        decoder_input_ids: Int[Array, "batch target"],
        decoder_attention_mask: Int[Array, "batch target"],
    ) -> Float[Array, "batch target vocab"]:
        """Score the next token after each decoder token; masks are 1 on tokens and 0 on padding.

        Raises:
            InputError: If the sequences are longer than the model has positions.
        """
        cache = self.body.read(input_ids, attention_mask)
        is_token = decoder_attention_mask > 0
        return self.score_words(self.body.decode(decoder_input_ids, is_token, cache))

    def begin(
        self,
        input_ids: Int[Array, "batch source"],
        attention_mask: Int[Array, "batch source"],
        max_new_tokens: int,
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """Read the source; score the first new token, and make room for `max_new_tokens`.

        Raises:
            InputError: If the source or `max_new_tokens` is longer than the model has positions.
        """
        cache = make_room(self.body.read(input_ids, attention_mask), max_new_tokens)
        return self.advance(jnp.full(input_ids.shape[0], self.body.start_token_id), cache)

    def advance(
        self, tokens: Int[Array, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """Read one more token of each row; score the next."""
        hidden, cache = self.body.decode_next(tokens, cache)
        return self.score_words(hidden)[:, 0], cache


class EncoderDecoderClassifier(EncoderDecoderModel, SequenceClassifier):
    """A head of two dense layers on the decoder's state at the last eos.

    In a row without eos, the state at the last token before padding is used.
    """

    rate_names = ("classifier_dropout",)

    def add_classifier(
        self, config: "PretrainedConfig", num_labels: int, rate: float, make: LayerFactory
    ) -> None:
        """Create the head."""
        self.classification_head = ClassificationHead(config.d_model, num_labels, rate, make)
        self.eos_token_id = config.eos_token_id

    def choose(self, tokens: Tokens) -> Take:
        """Take the decoder's state at the last eos."""
        return take_last_eos(tokens.input_ids, tokens.attention_mask, self.eos_token_id)

    def compute_logits(self, state: Float[Array, "batch hidden"]) -> Float[Array, "batch labels"]:
        """Score each sequence."""
        return self.classification_head(state)


class EncoderDecoderQuestionAnswerer(EncoderDecoderModel, QuestionAnswerer):
    """A linear head on the decoder's states; the source is the question with its text."""

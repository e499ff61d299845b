"""What the encoder-decoders share: decoder inputs, attention, the cache of generation, a head."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.models.layers import LayerFactory, at_least_float32


class KeyValue(NamedTuple):
    """What an attention looks at.

    Attributes:
      key: `[batch, length, heads, size]`.
      value: likewise.
    """

    key: Array
    value: Array


class Memory(NamedTuple):
    """What one decoder layer looks at besides the tokens that it is given.

    Attributes:
      target: the tokens so far, with room for those to come; None where all are given at once.
      source: what the encoder made of the source.
    """

    target: KeyValue | None
    source: KeyValue


class Cache(NamedTuple):
    """What a decoder knows besides its tokens; every array has a leading batch axis.

    Attributes:
      layers: one memory a decoder layer.
      is_source: `[batch, source]`, which tokens of the source are not padding.
      position: `[batch]`, where the next token goes, the same in every row; None where all tokens
        are given at once.
    """

    layers: tuple[Memory, ...]
    is_source: Array
    position: Array | None

    def next_slot(self) -> tuple[Array, int]:
        """Tell the next token's position, and how many there is room for."""
        target = self.layers[0].target
        assert target is not None
        assert self.position is not None
        return self.position[0], target.key.shape[1]

    def move_on(self, layers: Iterable[Memory]) -> "Cache":
        """Take the layers' new memories, one token on."""
        position = None if self.position is None else self.position + 1
        return Cache(tuple(layers), self.is_source, position)


def look_at(sources: Iterable[KeyValue], is_source: Bool[Array, "batch source"]) -> Cache:
    """Make the cache of a decoder that is given all its tokens at once."""
    return Cache(tuple(Memory(None, source) for source in sources), is_source, None)


def make_room(cache: Cache, length: int) -> Cache:
    """Make room for `length` tokens, to be given one at a time."""

    def empty(array: Array) -> Array:
        return jnp.zeros((array.shape[0], length, *array.shape[2:]), array.dtype)

    layers = tuple(Memory(jax.tree.map(empty, m.source), m.source) for m in cache.layers)
    return Cache(layers, cache.is_source, jnp.zeros(cache.is_source.shape[0], jnp.int32))


def remember(past: KeyValue | None, new: KeyValue, position: Array | None) -> KeyValue:
    """Write one token's key and value at its position; without a past, the new is all there is."""
    if past is None or position is None:
        return new
    # One slice for the whole batch, since the rows are in step: written in place, no scatter.
    return jax.tree.map(
        lambda old, update: jax.lax.dynamic_update_slice_in_dim(old, update, position[0], axis=1),
        past,
        new,
    )


def attend(
    query: Float[Array, "batch query heads size"],
    seen: KeyValue,
    is_seen: Bool[Array, "#batch 1 #query key"],
    dropout: nnx.Dropout,
    *,
    scale: float = 1.0,
    bias: Float[Array, "1 heads query key"] | None = None,
) -> Float[Array, "batch query hidden"]:
    """Mix the values that each query sees, softmax in float32 at least."""
    wide = at_least_float32(query.dtype)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, seen.key, preferred_element_type=wide) * scale
    if bias is not None:
        scores = scores + bias
    # The lowest finite number and not −inf: a row of padding only must not become NaN.
    scores = jnp.where(is_seen, scores, jnp.finfo(wide).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(seen.value.dtype))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, seen.value)
    return mixed.reshape(*mixed.shape[:2], -1)


def see_earlier(is_token: Bool[Array, "batch length"]) -> Bool[Array, "batch 1 length length"]:
    """Let each token see itself and those before it that are not padding."""
    length = is_token.shape[1]
    return jnp.tri(length, dtype=bool) & is_token[:, None, None, :]


def see_so_far(position: Int[Array, ""], room: int) -> Bool[Array, "1 1 1 room"]:
    """Let the token at `position` see itself and those before it, and not the empty room."""
    return (jnp.arange(room) <= position)[None, None, None]


def shift_right(ids: Int[Array, "batch length"], start: int) -> Int[Array, "batch length"]:
    """Make decoder inputs from what is to be said: `start` first, the last token dropped."""
    return jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=start)


def take_last_eos(
    hidden: Float[Array, "batch length hidden"],
    input_ids: Int[Array, "batch length"],
    attention_mask: Int[Array, "batch length"],
    eos_token_id: int | list[int] | None,
) -> Float[Array, "batch hidden"]:
    """Take each row's state at its last eos; without one, at its last token before padding."""
    is_token = attention_mask > 0
    eos = jnp.asarray([] if eos_token_id is None else eos_token_id, jnp.int32)
    is_eos = jnp.isin(input_ids, eos) & is_token
    candidates = jnp.where(is_eos.any(-1, keepdims=True), is_eos, is_token)
    last = jnp.max(jnp.where(candidates, jnp.arange(input_ids.shape[1]), 0), axis=-1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


class ClassificationHead(nnx.Module):
    """A dense layer with tanh, then a linear one, with dropout before each."""

    def __init__(self, features: int, num_labels: int, dropout_rate: float, make: LayerFactory):
        self.dense = make.linear(features, features)
        self.dropout = make.dropout(dropout_rate)
        self.out_proj = make.linear(features, num_labels)

    def __call__(self, state: Float[Array, "batch hidden"]) -> Float[Array, "batch labels"]:
        """Score each sequence's state."""
        inner = jnp.tanh(self.dense(self.dropout(state)))
        logits = self.out_proj(self.dropout(inner))
        return logits.astype(at_least_float32(logits.dtype))

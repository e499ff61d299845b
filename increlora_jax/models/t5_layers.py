"""T5's encoder and decoder: attention with relative positions, feed-forward blocks, stacks.

Attribute paths are Hugging Face's names. Dense layers are plain `nnx.Linear`, called as modules.
"""

import math
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.models.attention import KeyValue, attend, split_heads
from increlora_jax.models.encoder_decoder import (
    Cache,
    Memory,
    look_at,
    remember,
    see_earlier,
    see_so_far,
)
from increlora_jax.models.layer_loop import apply_layers
from increlora_jax.models.layers import LayerFactory, get_activation
from increlora_jax.models.repeated_layer import RepeatedLayer
from increlora_jax.models.taking import Take, take_all

if TYPE_CHECKING:
    from transformers import T5Config


class T5DenseReluDense(nnx.Module):
    """The feed-forward block, gated in version 1.1."""

    def __init__(self, config: "T5Config", make: LayerFactory):
        wide, narrow = make.scaled(config.d_model**-0.5), make.scaled(config.d_ff**-0.5)
        self.is_gated = config.is_gated_act
        if self.is_gated:
            self.wi_0 = wide.linear(config.d_model, config.d_ff, use_bias=False)
            self.wi_1 = wide.linear(config.d_model, config.d_ff, use_bias=False)
        else:
            self.wi = wide.linear(config.d_model, config.d_ff, use_bias=False)
        self.wo = narrow.linear(config.d_ff, config.d_model, use_bias=False)
        self.dropout = make.dropout(config.dropout_rate)
        self.activation = get_activation(config.dense_act_fn)

    def __call__(
        self, hidden: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length hidden"]:
        """Widen, activate, narrow."""
        if self.is_gated:
            inner = self.activation(self.wi_0(hidden)) * self.wi_1(hidden)
        else:
            inner = self.activation(self.wi(hidden))
        return self.wo(self.dropout(inner))


class T5Attention(nnx.Module):
    """Multi-head attention without scale and biases."""

    def __init__(self, config: "T5Config", make: LayerFactory):
        inner = config.num_heads * config.d_kv
        narrow = make.scaled(config.d_model**-0.5)
        query = make.scaled((config.d_model * config.d_kv) ** -0.5)
        self.num_heads = config.num_heads
        self.q = query.linear(config.d_model, inner, use_bias=False)
        self.k = narrow.linear(config.d_model, inner, use_bias=False)
        self.v = narrow.linear(config.d_model, inner, use_bias=False)
        self.o = make.scaled(inner**-0.5).linear(inner, config.d_model, use_bias=False)
        self.dropout = make.dropout(config.dropout_rate)

    def __call__(
        self,
        hidden: Float[Array, "batch query hidden"],
        seen: KeyValue,
        is_seen: Bool[Array, "#batch 1 #query key"],
        bias: Float[Array, "1 heads query key"] | None = None,
        take: Take = take_all,
    ) -> Float[Array, "batch taken hidden"]:
        """Attend to projected keys and values."""
        query = split_heads(self.q(hidden), self.num_heads)
        return self.o(take(attend(query, seen, is_seen, self.dropout, bias=bias)))

    def project(self, hidden: Float[Array, "batch key hidden"]) -> KeyValue:
        """Project states to keys and values."""
        return KeyValue(
            split_heads(self.k(hidden), self.num_heads), split_heads(self.v(hidden), self.num_heads)
        )


class T5PositionedAttention(T5Attention):
    """First self-attention of a stack, which holds the position biases of all its layers."""

    def __init__(self, config: "T5Config", make: LayerFactory, *, is_causal: bool):
        super().__init__(config, make)
        self.num_buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.is_causal = is_causal
        self.relative_attention_bias = make.scaled(config.d_model**-0.5).embedding(
            self.num_buckets, config.num_heads
        )

    def bias_all(self, length: int) -> Float[Array, "1 heads length length"]:
        """Return the biases of every token towards every token."""
        return skew(self._look_up(jnp.arange(1 - length, length)))[None]

    def bias_next(self, position: Int[Array, ""], room: int) -> Float[Array, "1 heads 1 room"]:
        """Return the biases of the token at `position` towards the first `room` tokens."""
        return self._look_up(jnp.arange(room) - position)[None, :, None]

    def _look_up(self, offsets: Int[Array, " offsets"]) -> Float[Array, "heads offsets"]:
        buckets = find_buckets(offsets, self.num_buckets, self.max_distance, self.is_causal)
        return self.relative_attention_bias(buckets).T


def find_buckets(
    offsets: Int[Array, " offsets"], num_buckets: int, max_distance: int, is_causal: bool
) -> Int[Array, " offsets"]:
    """Return the bucket of each offset, the key's position minus the query's.

    Args:
        offsets: The offsets, [offsets].
        num_buckets: Number of buckets.
        max_distance: Distance from which all offsets share a bucket.
        is_causal: Whether offsets above 0 are never seen; otherwise half of the buckets are for
            them.
    """
    if is_causal:
        return jnp.asarray(_bucket_distances(num_buckets, max_distance))[
            jnp.clip(-offsets, 0, max_distance)
        ]
    buckets = jnp.asarray(_bucket_distances(num_buckets // 2, max_distance))
    after = jnp.where(offsets > 0, num_buckets // 2, 0)
    return after + buckets[jnp.minimum(jnp.abs(offsets), max_distance)]


def _bucket_distances(num_buckets: int, max_distance: int) -> np.ndarray:
    """Return the buckets of the distances 0 to `max_distance`: half exact, half logarithmic."""
    exact = num_buckets // 2
    distances = np.arange(max_distance + 1)
    # NumPy in float32: buckets begin where the quotient is whole. Accelerators' logarithms, or more
    # digits, would round otherwise.
    ratios = np.maximum(distances, 1).astype(np.float32) / np.float32(exact)
    steps = np.log(ratios) / np.float32(math.log(max_distance / exact)) * (num_buckets - exact)
    far = np.minimum(exact + steps.astype(np.int32), num_buckets - 1)
    return np.where(distances < exact, distances, far).astype(np.int32)


def skew(rows: Float[Array, "heads offsets"]) -> Float[Array, "heads length length"]:
    """Arrange 2L−1 values by offset as [L, L] by query and key, without a gather.

    Row i, column j is the value at j − i + L − 1.
    """
    heads, length = rows.shape[0], (rows.shape[1] + 1) // 2
    period = jnp.pad(rows, ((0, 0), (0, 1)))
    repeated = jnp.broadcast_to(period[:, None], (heads, length, 2 * length)).reshape(heads, -1)
    # Rows are one shorter than the period: each starts one value before the row above.
    shifted = repeated[:, : length * (2 * length - 1)].reshape(heads, length, 2 * length - 1)
    return shifted[:, :, length - 1 :]


class T5LayerSelfAttention(nnx.Module):
    """Norm, self-attention, residual."""

    def __init__(self, config: "T5Config", attention: T5Attention, make: LayerFactory):
        self.SelfAttention = attention
        self.layer_norm = make.rms_norm(config.d_model, config.layer_norm_epsilon)
        self.dropout = make.dropout(config.dropout_rate)

    def __call__(
        self,
        hidden: Float[Array, "batch length hidden"],
        is_seen: Bool[Array, "#batch 1 #length key"],
        bias: Float[Array, "1 heads #length key"],
        past: KeyValue | None = None,
        position: Int[Array, " batch"] | None = None,
        take: Take = take_all,
    ) -> tuple[Float[Array, "batch taken hidden"], KeyValue]:
        """Attend to these tokens, or to the past and one more; also return the keys and values."""
        normed = self.layer_norm(hidden)
        seen = remember(past, self.SelfAttention.project(normed), position)
        mixed = self.dropout(self.SelfAttention(normed, seen, is_seen, bias, take))
        return take(hidden) + mixed, seen


class T5LayerCrossAttention(nnx.Module):
    """Norm, attention to the source, residual."""

    def __init__(self, config: "T5Config", make: LayerFactory):
        self.EncDecAttention = T5Attention(config, make)
        self.layer_norm = make.rms_norm(config.d_model, config.layer_norm_epsilon)
        self.dropout = make.dropout(config.dropout_rate)

    def __call__(
        self,
        hidden: Float[Array, "batch length hidden"],
        source: KeyValue,
        is_source: Bool[Array, "batch source"],
    ) -> Float[Array, "batch length hidden"]:
        """Attend to the source and add the residual."""
        is_seen = is_source[:, None, None, :]
        return hidden + self.dropout(self.EncDecAttention(self.layer_norm(hidden), source, is_seen))


class T5LayerFF(nnx.Module):
    """Norm, feed-forward block, residual."""

    def __init__(self, config: "T5Config", make: LayerFactory):
        self.DenseReluDense = T5DenseReluDense(config, make)
        self.layer_norm = make.rms_norm(config.d_model, config.layer_norm_epsilon)
        self.dropout = make.dropout(config.dropout_rate)

    def __call__(
        self, hidden: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length hidden"]:
        """Transform and add the residual."""
        return hidden + self.dropout(self.DenseReluDense(self.layer_norm(hidden)))


class T5EncoderBlock(RepeatedLayer):
    """Self-attention, then the feed-forward block."""

    def __init__(self, config: "T5Config", attention: T5Attention, make: LayerFactory):
        self.layer: nnx.List[Any] = nnx.List(
            [T5LayerSelfAttention(config, attention, make), T5LayerFF(config, make)]
        )

    def apply(
        self,
        hidden: Float[Array, "batch length hidden"],
        is_seen: Bool[Array, "batch 1 1 length"],
        bias: Float[Array, "1 heads length length"],
        take: Take = take_all,
    ) -> Float[Array, "batch taken hidden"]:
        """Apply both parts."""
        attended, _ = self.layer[0](hidden, is_seen, bias, take=take)
        return self.layer[1](attended)


class T5DecoderBlock(RepeatedLayer):
    """Self-attention, attention to the source, then the feed-forward block."""

    def __init__(self, config: "T5Config", attention: T5Attention, make: LayerFactory):
        self.layer: nnx.List[Any] = nnx.List(
            [
                T5LayerSelfAttention(config, attention, make),
                T5LayerCrossAttention(config, make),
                T5LayerFF(config, make),
            ]
        )

    def apply(
        self,
        hidden: Float[Array, "batch length hidden"],
        is_seen: Bool[Array, "#batch 1 length key"],
        bias: Float[Array, "1 heads length key"],
        cache: Cache,
        memory: Memory,
        take: Take = take_all,
    ) -> tuple[Float[Array, "batch taken hidden"], Memory]:
        """Apply all three parts; also return this block's memory with the new tokens."""
        hidden, seen = self.layer[0](hidden, is_seen, bias, memory.target, cache.position, take)
        hidden = self.layer[1](hidden, memory.source, cache.is_source)
        return self.layer[2](hidden), memory._replace(target=seen)


class T5Encoder(nnx.Module):
    """The stack that reads the source."""

    def __init__(self, config: "T5Config", make: LayerFactory):
        first = T5PositionedAttention(config, make, is_causal=False)
        rest = (T5Attention(config, make) for _ in range(config.num_layers - 1))
        self.block = nnx.List([T5EncoderBlock(config, each, make) for each in (first, *rest)])
        self.final_layer_norm = make.rms_norm(config.d_model, config.layer_norm_epsilon)
        self.dropout = make.dropout(config.dropout_rate)

    def __call__(
        self,
        embedded: Float[Array, "batch length hidden"],
        is_token: Bool[Array, "batch length"],
    ) -> Float[Array, "batch length hidden"]:
        """Apply every block in turn."""
        bias = self.block[0].layer[0].SelfAttention.bias_all(embedded.shape[1])
        hidden = self.dropout(embedded)
        hidden, _ = apply_layers(self.block, hidden, is_token[:, None, None, :], bias)
        return self.dropout(self.final_layer_norm(hidden))


class T5Decoder(nnx.Module):
    """The stack that writes the target, all at once or token by token."""

    def __init__(self, config: "T5Config", make: LayerFactory):
        first = T5PositionedAttention(config, make, is_causal=True)
        rest = (
            T5Attention(config, make)
            for _ in range((config.num_decoder_layers or config.num_layers) - 1)
        )
        self.block = nnx.List([T5DecoderBlock(config, each, make) for each in (first, *rest)])
        self.final_layer_norm = make.rms_norm(config.d_model, config.layer_norm_epsilon)
        self.dropout = make.dropout(config.dropout_rate)

    def __call__(
        self,
        embedded: Float[Array, "batch target hidden"],
        is_token: Bool[Array, "batch target"],
        cache: Cache,
        take: Take = take_all,
    ) -> Float[Array, "batch taken hidden"]:
        """Decode all tokens at once, each from the earlier ones; return the taken states."""
        bias = self.block[0].layer[0].SelfAttention.bias_all(embedded.shape[1])
        hidden, _ = self._run(embedded, see_earlier(is_token), bias, cache, take)
        return hidden

    def look_at(
        self, source: Float[Array, "batch source hidden"], is_source: Bool[Array, "batch source"]
    ) -> Cache:
        """Return the cache with every block's keys and values of the source."""
        attentions = (block.layer[1].EncDecAttention for block in self.block)
        return look_at((each.project(source) for each in attentions), is_source)

    def advance(
        self, embedded: Float[Array, "batch 1 hidden"], cache: Cache
    ) -> tuple[Float[Array, "batch 1 hidden"], Cache]:
        """Decode one more token."""
        position, room = cache.next_slot()
        bias = self.block[0].layer[0].SelfAttention.bias_next(position, room)
        return self._run(embedded, see_so_far(position, room), bias, cache)

    def _run(
        self, embedded: Array, is_seen: Array, bias: Array, cache: Cache, take: Take = take_all
    ) -> tuple[Array, Cache]:
        hidden, memories = apply_layers(
            self.block, self.dropout(embedded), is_seen, bias, cache, own=cache.layers, take=take
        )
        return self.dropout(self.final_layer_norm(hidden)), cache.move_on(memories)

"""BART's encoder and decoder: embeddings, attention, feed-forward blocks, norms after them.

Attribute paths are Hugging Face's names. Dense layers are plain `nnx.Linear`, called as modules.
"""

from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.errors import InputError
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
    from transformers import PretrainedConfig

# The first two rows of the table of positions are never used.
FIRST_POSITION = 2
NORM_EPSILON = 1e-5


class BartAttention(nnx.Module):
    """Multi-head attention."""

    def __init__(self, config: "PretrainedConfig", num_heads: int, make: LayerFactory):
        self.num_heads = num_heads
        self.q_proj = make.linear(config.d_model, config.d_model)
        self.k_proj = make.linear(config.d_model, config.d_model)
        self.v_proj = make.linear(config.d_model, config.d_model)
        self.out_proj = make.linear(config.d_model, config.d_model)
        self.dropout = make.dropout(config.attention_dropout)

    def __call__(
        self,
        hidden: Float[Array, "batch query hidden"],
        seen: KeyValue,
        is_seen: Bool[Array, "#batch 1 #query key"],
        take: Take = take_all,
    ) -> Float[Array, "batch taken hidden"]:
        """Attend to projected keys and values."""
        query = split_heads(self.q_proj(hidden), self.num_heads)
        scale = query.shape[-1] ** -0.5
        return self.out_proj(take(attend(query, seen, is_seen, self.dropout, scale=scale)))

    def project(self, hidden: Float[Array, "batch key hidden"]) -> KeyValue:
        """Project states to keys and values."""
        return KeyValue(
            split_heads(self.k_proj(hidden), self.num_heads),
            split_heads(self.v_proj(hidden), self.num_heads),
        )


class BartLayer(RepeatedLayer):
    """A layer of either stack: self-attention and a feed-forward block."""

    def __init__(self, config: "PretrainedConfig", num_heads: int, inner: int, make: LayerFactory):
        self.self_attn = BartAttention(config, num_heads, make)
        self.self_attn_layer_norm = make.layer_norm(config.d_model, NORM_EPSILON)
        self.fc1 = make.linear(config.d_model, inner)
        self.fc2 = make.linear(inner, config.d_model)
        self.final_layer_norm = make.layer_norm(config.d_model, NORM_EPSILON)
        self.activation = get_activation(config.activation_function)
        self.activation_dropout = make.dropout(config.activation_dropout)
        self.dropout = make.dropout(config.dropout)

    def attend_self(
        self,
        hidden: Float[Array, "batch length hidden"],
        is_seen: Bool[Array, "#batch 1 #length key"],
        past: KeyValue | None = None,
        position: Int[Array, " batch"] | None = None,
        take: Take = take_all,
    ) -> tuple[Float[Array, "batch taken hidden"], KeyValue]:
        """Attend to these tokens, or to the past and one more; also return the keys and values."""
        seen = remember(past, self.self_attn.project(hidden), position)
        mixed = self.dropout(self.self_attn(hidden, seen, is_seen, take))
        return self.self_attn_layer_norm(take(hidden) + mixed), seen

    def feed_forward(
        self, hidden: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length hidden"]:
        """Widen, activate, narrow, add."""
        inner = self.activation_dropout(self.activation(self.fc1(hidden)))
        return self.final_layer_norm(hidden + self.dropout(self.fc2(inner)))


class BartEncoderLayer(BartLayer):
    """Self-attention, then the feed-forward block."""

    def __init__(self, config: "PretrainedConfig", make: LayerFactory):
        super().__init__(config, config.encoder_attention_heads, config.encoder_ffn_dim, make)

    def apply(
        self,
        hidden: Float[Array, "batch length hidden"],
        is_seen: Bool[Array, "batch 1 1 length"],
        take: Take = take_all,
    ) -> Float[Array, "batch taken hidden"]:
        """Apply both parts."""
        attended, _ = self.attend_self(hidden, is_seen, take=take)
        return self.feed_forward(attended)


class BartDecoderLayer(BartLayer):
    """Self-attention, attention to the source, then the feed-forward block."""

    def __init__(self, config: "PretrainedConfig", make: LayerFactory):
        num_heads = config.decoder_attention_heads
        super().__init__(config, num_heads, config.decoder_ffn_dim, make)
        self.encoder_attn = BartAttention(config, num_heads, make)
        self.encoder_attn_layer_norm = make.layer_norm(config.d_model, NORM_EPSILON)

    def apply(
        self,
        hidden: Float[Array, "batch length hidden"],
        is_seen: Bool[Array, "#batch 1 length key"],
        cache: Cache,
        memory: Memory,
        take: Take = take_all,
    ) -> tuple[Float[Array, "batch taken hidden"], Memory]:
        """Apply all three parts; also return this layer's memory with the new tokens."""
        hidden, seen = self.attend_self(hidden, is_seen, memory.target, cache.position, take)
        is_source = cache.is_source[:, None, None, :]
        mixed = self.dropout(self.encoder_attn(hidden, memory.source, is_source))
        hidden = self.encoder_attn_layer_norm(hidden + mixed)
        return self.feed_forward(hidden), memory._replace(target=seen)


class BartStack(nnx.Module):
    """Input of either stack: word and position embeddings with a norm; own words if untied."""

    def __init__(self, config: "PretrainedConfig", make: LayerFactory):
        if not config.tie_word_embeddings:
            self.embed_tokens = make.embedding(config.vocab_size, config.d_model)
        self.embed_positions = make.embedding(
            FIRST_POSITION + config.max_position_embeddings, config.d_model
        )
        self.layernorm_embedding = make.layer_norm(config.d_model, NORM_EPSILON)
        self.dropout = make.dropout(config.dropout)

    def add_positions(
        self, words: Float[Array, "batch length hidden"], start: Int[Array, ""] | int = 0
    ) -> Float[Array, "batch length hidden"]:
        """Add the embeddings of positions from `start` on."""
        positions = self.embed_positions(FIRST_POSITION + start + jnp.arange(words.shape[1]))
        return self.dropout(self.layernorm_embedding(words + positions))

    def check_length(self, length: int) -> None:
        """Check that the table of positions is long enough.

        Raises:
            InputError: If it is not.
        """
        limit = self.embed_positions.num_embeddings - FIRST_POSITION
        if length > limit:
            raise InputError(
                f"a sequence of {length} tokens is longer than the model's {limit} positions "
                "(max_position_embeddings). Lower --max-seq-length, or how many tokens to generate"
            )


class BartEncoder(BartStack):
    """The stack that reads the source."""

    def __init__(self, config: "PretrainedConfig", make: LayerFactory):
        super().__init__(config, make)
        self.layers = nnx.List(
            [BartEncoderLayer(config, make) for _ in range(config.encoder_layers)]
        )

    def __call__(
        self,
        words: Float[Array, "batch length hidden"],
        is_token: Bool[Array, "batch length"],
    ) -> Float[Array, "batch length hidden"]:
        """Apply every layer in turn.

        Raises:
            InputError: If the sequences are longer than the model has positions.
        """
        self.check_length(words.shape[1])
        hidden = self.add_positions(words)
        return apply_layers(self.layers, hidden, is_token[:, None, None, :])[0]


class BartDecoder(BartStack):
    """The stack that writes the target, all at once or token by token."""

    def __init__(self, config: "PretrainedConfig", make: LayerFactory):
        super().__init__(config, make)
        self.layers = nnx.List(
            [BartDecoderLayer(config, make) for _ in range(config.decoder_layers)]
        )

    def __call__(
        self,
        words: Float[Array, "batch target hidden"],
        is_token: Bool[Array, "batch target"],
        cache: Cache,
        take: Take = take_all,
    ) -> Float[Array, "batch taken hidden"]:
        """Decode all tokens at once, each from the earlier ones; return the taken states.

        Raises:
            InputError: If the sequences are longer than the model has positions.
        """
        self.check_length(words.shape[1])
        hidden, _ = self._run(self.add_positions(words), see_earlier(is_token), cache, take)
        return hidden

    def look_at(
        self, source: Float[Array, "batch source hidden"], is_source: Bool[Array, "batch source"]
    ) -> Cache:
        """Return the cache with every layer's keys and values of the source."""
        return look_at((layer.encoder_attn.project(source) for layer in self.layers), is_source)

    def advance(
        self, words: Float[Array, "batch 1 hidden"], cache: Cache
    ) -> tuple[Float[Array, "batch 1 hidden"], Cache]:
        """Decode one more token.

        Raises:
            InputError: If the cache has room for more tokens than the model has positions.
        """
        position, room = cache.next_slot()
        self.check_length(room)
        hidden = self.add_positions(words, position)
        return self._run(hidden, see_so_far(position, room), cache)

    def _run(
        self, hidden: Array, is_seen: Array, cache: Cache, take: Take = take_all
    ) -> tuple[Array, Cache]:
        hidden, memories = apply_layers(
            self.layers, hidden, is_seen, cache, own=cache.layers, take=take
        )
        return hidden, cache.move_on(memories)

"""Encoder of DeBERTa-v2 and -v3 (He et al., arXiv 2006.03654 and 2111.09543).

Attribute paths are Hugging Face's names. Dense layers are plain `nnx.Linear`. Each is called as a
module, once in a forward pass.
"""

from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.errors import InputError
from increlora_jax.models.attention import split_heads
from increlora_jax.models.bert import BertIntermediate, BertOutput
from increlora_jax.models.fused_attention import Attended, FusableAttention, Settings, attend_fused
from increlora_jax.models.layer_loop import apply_layers
from increlora_jax.models.layers import LayerFactory, at_least_float32, get_activation
from increlora_jax.models.packing import count_places, find_seen
from increlora_jax.models.relative_positions import RelativePositions, find_table_rows
from increlora_jax.models.repeated_layer import RepeatedLayer
from increlora_jax.models.taking import Take, take_all

if TYPE_CHECKING:
    from transformers import DebertaV2Config


class DebertaEmbeddings(nnx.Module):
    """Word vectors, plus positions and token types if the model has them, normalised."""

    def __init__(self, config: "DebertaV2Config", make: LayerFactory):
        size = embedding_size(config)
        self.word_embeddings = make.embedding(config.vocab_size, size)
        self.position_embeddings = (
            make.embedding(config.max_position_embeddings, size)
            if config.position_biased_input
            else None
        )
        self.token_type_embeddings = (
            make.embedding(config.type_vocab_size, size) if config.type_vocab_size > 0 else None
        )
        self.embed_proj = (
            make.linear(size, config.hidden_size, use_bias=False)
            if size != config.hidden_size
            else None
        )
        self.LayerNorm = make.layer_norm(config.hidden_size, config.layer_norm_eps)
        self.dropout = make.dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        is_token: Bool[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
        sequences: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length hidden"]:
        """Embed the tokens; padding becomes 0. Each of a row's `sequences` has its own positions.

        Raises:
            InputError: If a sequence is longer than the table of absolute positions.
        """
        summed = self.word_embeddings(input_ids)
        if self.position_embeddings is not None:
            summed += self._embed_positions(self.position_embeddings, input_ids, sequences)
        if self.token_type_embeddings is not None:
            summed += self.token_type_embeddings(token_type_ids)
        if self.embed_proj is not None:
            summed = self.embed_proj(summed)
        return self.dropout(self.LayerNorm(summed) * is_token[..., None])

    def _embed_positions(
        self, table: nnx.Embed, input_ids: jax.Array, sequences: jax.Array | None
    ) -> jax.Array:
        length = input_ids.shape[-1]
        if length > table.num_embeddings:
            raise InputError(
                f"a sequence of {length} tokens is longer than the model's {table.num_embeddings} "
                "positions (max_position_embeddings). Lower --max-seq-length"
            )
        if sequences is None:
            return table(jnp.arange(length))
        return table(count_places(jnp.ones_like(input_ids, bool), sequences) - 1)


class DebertaSelfAttention(FusableAttention):
    """Attention by content, by the key's relative position (c2p) and by the query's (p2c)."""

    def __init__(self, config: "DebertaV2Config", make: LayerFactory):
        hidden_size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.pos_att_type = tuple(config.pos_att_type or ())
        self.query_proj = make.linear(hidden_size, hidden_size)
        self.key_proj = make.linear(hidden_size, hidden_size)
        self.value_proj = make.linear(hidden_size, hidden_size)
        self.is_shared = getattr(config, "share_att_key", False)
        if not self.is_shared and "c2p" in self.pos_att_type:
            self.pos_key_proj = make.linear(hidden_size, hidden_size)
        if not self.is_shared and "p2c" in self.pos_att_type:
            self.pos_query_proj = make.linear(hidden_size, hidden_size)
        self.pos_dropout = make.dropout(config.hidden_dropout_prob)
        self.dropout = make.dropout(config.attention_probs_dropout_prob)

    def __call__(
        self,
        hidden: Float[Array, "batch length hidden"],
        is_seen: Bool[Array, "batch 1 length length"],
        positions: RelativePositions,
    ) -> Float[Array, "batch length hidden"]:
        """Mix the values of the visible tokens; the softmax is in float32 at least."""
        rows = self.pos_dropout(positions.rows)
        query, row_query = self._project("query", "p2c", hidden, rows)
        key, row_key = self._project("key", "c2p", hidden, rows)
        value = split_heads(self.value_proj(hidden), self.num_heads)
        if self.attn_implementation == "pallas":
            fused = self._attend_fused(query, key, value, row_key, row_query, is_seen, positions)
            return fused.reshape(hidden.shape)
        wide = at_least_float32(query.dtype)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=wide)
        if row_key is not None:
            scores += positions.score_content_to_position(query, row_key, wide)
        if row_query is not None:
            scores += positions.score_position_to_content(key, row_query, wide)
        scores *= self._scale(query)
        # A row of padding attends to all tokens equally, as in PyTorch, and never becomes NaN.
        scores = jnp.where(is_seen, scores, jnp.finfo(wide).min)
        weights = self.dropout(jax.nn.softmax(scores, axis=-1).astype(value.dtype))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(hidden.shape)

    def _attend_fused(
        self,
        query: Float[Array, "batch length heads size"],
        key: Float[Array, "batch length heads size"],
        value: Float[Array, "batch length heads size"],
        row_key: Float[Array, "rows hidden"] | None,
        row_query: Float[Array, "rows hidden"] | None,
        is_seen: Bool[Array, "batch 1 length length"],
        positions: RelativePositions,
    ) -> Float[Array, "batch length heads size"]:
        batch, length, heads, _ = query.shape
        is_kept, kept_scale = self.dropout.draw((batch, heads, length, length))
        key_rows, query_rows = (
            None if rows is None else positions.row_of_each_distance(rows, heads)
            for rows in (row_key, row_query)
        )
        return attend_fused(
            Settings(self._scale(query), kept_scale, self.is_interpreted),
            Attended(query, key, key_rows, query_rows, value, is_seen, is_kept),
        )

    def _scale(self, query: Float[Array, "batch length heads size"]) -> float:
        return (query.shape[-1] * (1 + len(self.pos_att_type))) ** -0.5

    def _project(
        self,
        name: Literal["query", "key"],
        kind: Literal["p2c", "c2p"],
        hidden: Float[Array, "batch length hidden"],
        rows: Float[Array, "rows hidden"],
    ) -> tuple[Float[Array, "batch length heads size"], Float[Array, "rows hidden"] | None]:
        """Project the tokens, and the positions if this kind of attention uses them.

        Args:
            name: The name of the projection.
            kind: The kind of attention, `c2p` or `p2c`.
            hidden: The tokens' states, [batch, length, hidden].
            rows: The table of relative positions, [rows, hidden].
        """
        project = getattr(self, f"{name}_proj")
        if kind not in self.pos_att_type:
            return split_heads(project(hidden), self.num_heads), None
        if not self.is_shared:
            project_rows = getattr(self, f"pos_{name}_proj")
            return split_heads(project(hidden), self.num_heads), project_rows(rows)
        # One call for both: an adapter's score needs the gradient summed over all inputs.
        joined = project(jnp.concatenate([hidden.reshape(-1, hidden.shape[-1]), rows]))
        tokens, projected_rows = jnp.split(joined, [hidden.shape[0] * hidden.shape[1]])
        return split_heads(tokens.reshape(hidden.shape), self.num_heads), projected_rows


class DebertaAttention(nnx.Module):
    """The first half of a layer."""

    def __init__(self, config: "DebertaV2Config", make: LayerFactory):
        self.self = DebertaSelfAttention(config, make)
        self.output = BertOutput(config, config.hidden_size, make)

    def __call__(
        self,
        hidden: Float[Array, "batch length hidden"],
        is_seen: Bool[Array, "batch 1 length length"],
        positions: RelativePositions,
        take: Take = take_all,
    ) -> Float[Array, "rows taken hidden"]:
        """Attend and add the residual."""
        return self.output(take(self.self(hidden, is_seen, positions)), take(hidden))


class DebertaLayer(RepeatedLayer):
    """Attention, then a feed-forward block."""

    def __init__(self, config: "DebertaV2Config", make: LayerFactory):
        self.attention = DebertaAttention(config, make)
        self.intermediate = BertIntermediate(config, make)
        self.output = BertOutput(config, config.intermediate_size, make)

    def apply(
        self,
        hidden: Float[Array, "batch length hidden"],
        is_seen: Bool[Array, "batch 1 length length"],
        positions: RelativePositions,
        take: Take = take_all,
    ) -> Float[Array, "rows taken hidden"]:
        """Apply both halves."""
        attended = self.attention(hidden, is_seen, positions, take)
        return self.output(self.intermediate(attended), attended)


class DebertaConvolution(nnx.Module):
    """Convolution of neighbours' embeddings, which v2's large models add to the first layer."""

    def __init__(self, config: "DebertaV2Config", make: LayerFactory):
        groups = getattr(config, "conv_groups", 1)
        self.conv = make.convolution(config.hidden_size, _convolution_width(config), groups)
        self.LayerNorm = make.layer_norm(config.hidden_size, config.layer_norm_eps)
        self.dropout = make.dropout(config.hidden_dropout_prob)
        self.activation = get_activation(getattr(config, "conv_act", "tanh"))

    def __call__(
        self,
        embedded: Float[Array, "batch length hidden"],
        residual: Float[Array, "batch length hidden"],
        is_token: Bool[Array, "batch length"],
    ) -> Float[Array, "batch length hidden"]:
        """Add the convolved embeddings to the first layer's output; padding becomes 0."""
        mask = is_token[..., None]
        inner = self.activation(self.dropout(self.conv(embedded) * mask))
        return self.LayerNorm(residual + inner) * mask


class DebertaEncoder(nnx.Module):
    """The stack of layers and the table of relative positions that they share."""

    def __init__(self, config: "DebertaV2Config", make: LayerFactory):
        self.layer = nnx.List([DebertaLayer(config, make) for _ in range(config.num_hidden_layers)])
        self.position_buckets = _position_buckets(config)
        self.max_relative_positions = _max_relative_positions(config)
        span = self.position_buckets if self.position_buckets > 0 else self.max_relative_positions
        self.rel_embeddings = make.embedding(2 * span, config.hidden_size)
        self.LayerNorm = (
            make.layer_norm(config.hidden_size, config.layer_norm_eps)
            if _are_positions_normalised(config)
            else None
        )
        self.conv = DebertaConvolution(config, make) if _convolution_width(config) > 0 else None

    def __call__(
        self,
        embedded: Float[Array, "batch length hidden"],
        attention_mask: Int[Array, "batch length"],
        *,
        is_packed: bool = False,
        take: Take = take_all,
    ) -> Float[Array, "rows taken hidden"]:
        """Apply every layer in turn; if packed, the mask numbers the sequences of a row."""
        is_token = attention_mask > 0
        is_seen = find_seen(attention_mask, is_packed=is_packed) & is_token[:, None, :, None]
        positions = self._relative_positions(embedded.shape[1])
        hidden, rest = embedded, list(self.layer)
        if self.conv is not None:
            hidden = self.conv(embedded, rest.pop(0)(hidden, is_seen, positions), is_token)
        return apply_layers(rest, hidden, is_seen, positions, take=take)[0]

    def _relative_positions(self, length: int) -> RelativePositions:
        choice = find_table_rows(length, self.position_buckets, self.max_relative_positions)
        first, last = choice[0], choice[-1]
        table = self.rel_embeddings
        rows = table.embedding[first : last + 1].astype(table.dtype)
        return RelativePositions(
            rows if self.LayerNorm is None else self.LayerNorm(rows), choice - first
        )


class DebertaModel(nnx.Module):
    """Embeddings and encoder."""

    def __init__(self, config: "DebertaV2Config", make: LayerFactory):
        _check_config(config)
        self.embeddings = DebertaEmbeddings(config, make)
        self.encoder = DebertaEncoder(config, make)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
        *,
        is_packed: bool = False,
        take: Take = take_all,
    ) -> Float[Array, "rows taken hidden"]:
        """Encode tokens; if packed, the mask numbers the sequences of a row."""
        sequences = attention_mask if is_packed else None
        embedded = self.embeddings(input_ids, attention_mask > 0, token_type_ids, sequences)
        return self.encoder(embedded, attention_mask, is_packed=is_packed, take=take)


def embedding_size(config: "DebertaV2Config") -> int:
    """Return the width of the word vectors, which may differ from that of the layers."""
    return getattr(config, "embedding_size", config.hidden_size)


def _position_buckets(config: "DebertaV2Config") -> int:
    return getattr(config, "position_buckets", -1)


def _max_relative_positions(config: "DebertaV2Config") -> int:
    stated = config.max_relative_positions
    return stated if stated >= 1 else config.max_position_embeddings


def _convolution_width(config: "DebertaV2Config") -> int:
    return getattr(config, "conv_kernel_size", 0)


def _are_positions_normalised(config: "DebertaV2Config") -> bool:
    stated = getattr(config, "norm_rel_ebd", "none").lower()
    return "layer_norm" in [part.strip() for part in stated.split("|")]


def _check_config(config: "DebertaV2Config") -> None:
    _check_positions(config)
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"config.json: hidden_size {config.hidden_size} is not a multiple of "
            f"num_attention_heads {config.num_attention_heads}. Correct the one that is wrong"
        )
    head_size = config.hidden_size // config.num_attention_heads
    fixed = {"pooler_hidden_size": config.hidden_size, "attention_head_size": head_size}
    for key, value in fixed.items():
        if (stated := getattr(config, key, value)) != value:
            raise InputError(
                f"config.json: {key} {stated} is not done here, only {value}, which follows from "
                "hidden_size and num_attention_heads. Choose a model where they agree"
            )
    if (width := _convolution_width(config)) > 0 and width % 2 == 0:
        raise InputError(
            f"config.json: conv_kernel_size {width} is even, and the convolution must keep the "
            "number of tokens. Correct it"
        )


def _check_positions(config: "DebertaV2Config") -> None:
    if not config.relative_attention:
        raise InputError(
            "config.json: relative_attention is not set, and only attention by relative positions "
            "is done here. Choose a model that has it, as all published DeBERTa-v2 and -v3 do"
        )
    if unknown := set(config.pos_att_type or ()) - {"c2p", "p2c"}:
        raise InputError(
            f"config.json: pos_att_type {', '.join(sorted(unknown))} is not known here, only c2p "
            "and p2c. Choose a model with these"
        )
    buckets, limit = _position_buckets(config), _max_relative_positions(config)
    if buckets > 0 and not 0 < buckets // 2 < limit - 1:
        raise InputError(
            f"config.json: position_buckets {buckets} cannot be logarithmic up to a distance of "
            f"{limit} (max_relative_positions). Give at least 2 and fewer than {2 * limit - 2}"
        )

"""Llama (Touvron et al., arXiv 2302.13971) and its relatives Mistral, Qwen2 and Qwen3.

Attribute paths are Hugging Face's names. Dense layers are plain `nnx.Linear`, called as modules.
"""

from dataclasses import dataclass, replace
from math import pi
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from increlora_jax.errors import InputError
from increlora_jax.models.attention import KeyValue, attend
from increlora_jax.models.causal import (
    CausalLM,
    CausalQuestionAnswerer,
    CausalSequenceClassifier,
    Span,
)
from increlora_jax.models.layer_loop import apply_layers
from increlora_jax.models.layers import LayerFactory, at_least_float32, get_activation
from increlora_jax.models.repeated_layer import RepeatedLayer
from increlora_jax.models.spec import ModelSpec, allow_any_length
from increlora_jax.models.taking import Take, take_all
from increlora_jax.weights.table import Rule, WeightTable

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LLAMA_WEIGHTS = WeightTable(
    rules=(
        Rule(r"((?:model|transformer)\.embed_tokens)\.embedding", r"\1.weight"),
        Rule(r"(.+norm)\.scale", r"\1.weight"),
        Rule(r"(.+_proj|lm_head|score|qa_outputs)\.kernel", r"\1.weight", is_transposed=True),
        Rule(r"(.+)\.bias", r"\1.bias"),
    ),
    # Files saved from the bare body.
    renames=((r"((?:embed_tokens|layers|norm)\..+)", r"model.\1"),),
    ignored=(
        r".+\.rotary_emb\.inv_freq",  # a constant
        r"(lm_head|score|qa_outputs)\..+",  # the word embeddings once more where tied; other heads
    ),
    # Some heads have another name for the body.
    stand_ins=((r"model\.(.+)", r"transformer.\1"), (r"transformer\.(.+)", r"model.\1")),
    may_be_missing=(r"(score|qa_outputs)\..+",),
    outputs=(r"score\..+",),
    body=(r"(model|transformer)\..+",),
)


@dataclass(frozen=True)
class Layout:
    """Differences between the architectures of this file, read from a configuration.

    Attributes:
        heads, shared_heads, size: Number of heads of queries, of keys and values, and their width.
        has_input_bias: Whether query, key and value have biases.
        has_output_bias: Whether attention's output has a bias.
        has_mlp_bias: Whether the feed-forward half has biases.
        has_head_norm: Whether queries and keys are normalised, head by head.
        windows: Number of tokens that each layer sees back, itself included; None is all.
    """

    heads: int
    shared_heads: int
    size: int
    has_input_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_head_norm: bool
    windows: tuple[int | None, ...]

    @classmethod
    def of(cls, config: "PretrainedConfig") -> Self:
        """Read a configuration.

        Raises:
            InputError: If its numbers contradict each other.
        """
        kind, heads = config.model_type, config.num_attention_heads
        has_bias = kind in ("llama", "qwen3") and config.attention_bias
        layout = cls(
            heads=heads,
            shared_heads=config.num_key_value_heads or heads,
            size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            has_input_bias=has_bias or kind == "qwen2",
            has_output_bias=has_bias,
            has_mlp_bias=kind == "llama" and config.mlp_bias,
            has_head_norm=kind == "qwen3",
            windows=_read_windows(config),
        )
        if heads % layout.shared_heads:
            raise InputError(
                f"config.json: num_attention_heads {heads} is not a multiple of "
                f"num_key_value_heads {layout.shared_heads}. Correct the one that is wrong"
            )
        return layout


def _read_windows(config: "PretrainedConfig") -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    if config.model_type == "mistral":
        return (window,) * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which positions turn queries and keys (RoPE)."""

    cosine: Float[Array, "batch length half"]
    sine: Float[Array, "batch length half"]

    @classmethod
    def at(
        cls, positions: Int[Array, "batch length"], frequencies: np.ndarray, dtype: DTypeLike
    ) -> Self:
        """Return the angles at the given positions, in float32 at least."""
        wide = at_least_float32(dtype)
        angles = positions[..., None].astype(wide) * jnp.asarray(frequencies, wide)
        return cls(jnp.cos(angles), jnp.sin(angles))

    def turn(
        self, x: Float[Array, "batch length heads size"]
    ) -> Float[Array, "batch length heads size"]:
        """Turn each pair (x[i], x[i + size/2]) by the i-th angle."""
        cosine, sine = self.cosine[:, :, None], self.sine[:, :, None]
        left, right = jnp.split(x.astype(cosine.dtype), 2, axis=-1)
        turned = (left * cosine - right * sine, right * cosine + left * sine)
        return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def find_frequencies(config: "PretrainedConfig", size: int) -> np.ndarray:
    """Compute the angle per position of each pair, `theta^(−2i/size)`, scaled as configured.

    Raises:
        InputError: If the kind of scaling is not supported.
    """
    # For configurations of any age: transformers reads "rope_theta" and "rope_scaling" into it.
    rope = config.rope_parameters
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(
            f"config.json: partial_rotary_factor {rope['partial_rotary_factor']} is not done here, "
            "only 1.0. Choose another model"
        )
    frequencies = rope["rope_theta"] ** -(np.arange(0, size, 2) / size)
    match rope["rope_type"]:
        case "default":
            return frequencies
        case "linear":
            return frequencies / rope["factor"]
        case "llama3":
            return _stretch_slow(frequencies, rope)
    raise InputError(
        f'config.json: rope_type "{rope["rope_type"]}" is not done here, only "default", "linear" '
        'and "llama3". Choose another model'
    )


def _stretch_slow(frequencies: np.ndarray, rope: dict[str, Any]) -> np.ndarray:
    """Divide the frequencies that turn seldom in the first context by `factor`.

    Frequencies that turn often are kept. Between both, the two values are blended by the number of
    turns (Llama 3.1).
    """
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / rope["factor"])


class LlamaAttention(nnx.Module):
    """Grouped-query attention of every token to itself and those before it."""

    def __init__(self, config: "PretrainedConfig", layer: int, layout: Layout, make: LayerFactory):
        self.layout, self.window = layout, layout.windows[layer]
        hidden, bias = config.hidden_size, layout.has_input_bias
        mixed, shared = layout.heads * layout.size, layout.shared_heads * layout.size
        self.q_proj = make.linear(hidden, mixed, use_bias=bias)
        self.k_proj = make.linear(hidden, shared, use_bias=bias)
        self.v_proj = make.linear(hidden, shared, use_bias=bias)
        self.o_proj = make.linear(mixed, hidden, use_bias=layout.has_output_bias)
        if layout.has_head_norm:
            self.q_norm = make.rms_norm(layout.size, config.rms_norm_eps)
            self.k_norm = make.rms_norm(layout.size, config.rms_norm_eps)
        self.dropout = make.dropout(config.attention_dropout)

    def __call__(
        self,
        hidden: Float[Array, "batch length hidden"],
        rotation: Rotation,
        span: Span,
        past: KeyValue | None,
        take: Take,
    ) -> tuple[Float[Array, "batch taken hidden"], KeyValue]:
        """Mix the values of the visible tokens; also return the past with these tokens."""
        query, key, value = (
            project(hidden).reshape(*hidden.shape[:-1], -1, self.layout.size)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.layout.has_head_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        past = span.extend(past, rotation.turn(key), value)
        is_visible, scale = span.find_visible(self.window), self.layout.size**-0.5
        mixed = attend(rotation.turn(query), past, is_visible, self.dropout, scale=scale)
        return self.o_proj(take(mixed)), past


class LlamaMLP(nnx.Module):
    """The gated feed-forward half of a layer."""

    def __init__(self, config: "PretrainedConfig", layout: Layout, make: LayerFactory):
        hidden, inner, bias = config.hidden_size, config.intermediate_size, layout.has_mlp_bias
        self.gate_proj = make.linear(hidden, inner, use_bias=bias)
        self.up_proj = make.linear(hidden, inner, use_bias=bias)
        self.down_proj = make.linear(inner, hidden, use_bias=bias)
        self.activation = get_activation(config.hidden_act)

    def __call__(
        self, hidden: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length hidden"]:
        """Widen, gate, narrow."""
        return self.down_proj(self.activation(self.gate_proj(hidden)) * self.up_proj(hidden))


class LlamaDecoderLayer(RepeatedLayer):
    """Attention, then a feed-forward half, each with a norm before and a residual after."""

    def __init__(self, config: "PretrainedConfig", layer: int, layout: Layout, make: LayerFactory):
        self.input_layernorm = make.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config, layer, layout, make)
        self.post_attention_layernorm = make.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config, layout, make)

    def apply(
        self,
        hidden: Float[Array, "batch length hidden"],
        rotation: Rotation,
        span: Span,
        past: KeyValue | None = None,
        take: Take = take_all,
    ) -> tuple[Float[Array, "batch taken hidden"], KeyValue]:
        """Apply both halves; also return the past with these tokens."""
        attended, past = self.self_attn(self.input_layernorm(hidden), rotation, span, past, take)
        hidden = take(hidden) + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), past


class LlamaModel(nnx.Module):
    """Embeddings, layers and the last norm; positions rotate queries and keys."""

    def __init__(self, config: "PretrainedConfig", make: LayerFactory):
        layout = Layout.of(config)
        # A tuple: NNX would take arrays for weights.
        self.frequencies = tuple(find_frequencies(config, layout.size).tolist())
        self.embed_tokens = make.embedding(config.vocab_size, config.hidden_size)
        layers = (
            LlamaDecoderLayer(config, layer, layout, make)
            for layer in range(config.num_hidden_layers)
        )
        self.layers = nnx.List(list(layers))
        self.norm = make.rms_norm(config.hidden_size, config.rms_norm_eps)

    @property
    def words(self) -> nnx.Embed:
        """Table of word embeddings."""
        return self.embed_tokens

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        span: Span,
        past: tuple[KeyValue, ...] | None = None,
        take: Take = take_all,
    ) -> tuple[Float[Array, "batch taken hidden"], tuple[KeyValue, ...]]:
        """Read tokens after the past; return the taken states, and the past with all tokens."""
        hidden = self.embed_tokens(input_ids)
        rotation = Rotation.at(span.positions, np.array(self.frequencies), hidden.dtype)
        hidden, grown = apply_layers(self.layers, hidden, rotation, span, own=past, take=take)
        return self.norm(hidden), tuple(grown)


class LlamaForCausalLM(CausalLM):
    """Llama with scores of the next token."""

    body_name, make_body = "model", LlamaModel


class LlamaForSequenceClassification(CausalSequenceClassifier):
    """Llama with a score for each label of a sequence."""

    body_name, make_body = "model", LlamaModel


class LlamaForQuestionAnswering(CausalQuestionAnswerer):
    """Llama or Qwen with scores of an answer's start and end; its body has another name."""

    body_name, make_body = "transformer", LlamaModel


class MistralForQuestionAnswering(CausalQuestionAnswerer):
    """Mistral with scores of an answer's start and end."""

    body_name, make_body = "model", LlamaModel


LLAMA_SHARDINGS = {
    r"(model|transformer)\.embed_tokens\.embedding": (None, "fsdp"),
    r".*\.(self_attn\.[qkv]_proj|mlp\.(gate|up)_proj)\.kernel": ("fsdp", "tensor"),
    r".*\.(self_attn\.[qkv]_proj|mlp\.(gate|up)_proj)\.bias": ("tensor",),
    r".*\.(self_attn\.o|mlp\.down)_proj\.kernel": ("tensor", "fsdp"),
    r".*\.(self_attn\.o|mlp\.down)_proj\.bias": (),
    r"(model|transformer)\..*norm\.scale": (),
    r"lm_head\.kernel": ("fsdp", None),
    r"(score|qa_outputs)\..*": (),
}


LLAMA = ModelSpec(
    heads={
        "sequence_classification": LlamaForSequenceClassification,
        "question_answering": LlamaForQuestionAnswering,
        "causal_lm": LlamaForCausalLM,
    },
    weights=LLAMA_WEIGHTS,
    target_modules=(
        r"(model|transformer)\.layers\.\d+\."
        r"(self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj))"
    ),
    sublayer_ends=r"(model|transformer)\.layers\.\d+\.(self_attn\.o_proj|mlp\.down_proj)",
    layer_ends=r"(model|transformer)\.layers\.\d+\.mlp\.down_proj",
    modules_to_save={
        "sequence_classification": ("score",),
        "question_answering": ("qa_outputs",),
    },
    shardings=LLAMA_SHARDINGS,
    max_length=allow_any_length,
)

MISTRAL = replace(LLAMA, heads={**LLAMA.heads, "question_answering": MistralForQuestionAnswering})

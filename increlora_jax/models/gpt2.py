"""GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).

Attribute paths are Hugging Face's names. Dense layers are plain `nnx.Linear`, called as modules. On
disk, most of their kernels have the same layout, [in, out].
"""

from typing import TYPE_CHECKING

from flax import nnx
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
from increlora_jax.models.layers import LayerFactory, get_activation
from increlora_jax.models.repeated_layer import RepeatedLayer
from increlora_jax.models.spec import ModelSpec, count_positions
from increlora_jax.models.taking import Take, take_all
from increlora_jax.weights.table import Rule, WeightTable

if TYPE_CHECKING:
    from transformers import GPT2Config

GPT2_WEIGHTS = WeightTable(
    rules=(
        Rule(r"(transformer\.w[tp]e)\.embedding", r"\1.weight"),
        Rule(r"(.+\.ln_\w)\.scale", r"\1.weight"),
        Rule(r"(.+\.c_(?:attn|proj|fc))\.kernel", r"\1.weight"),
        Rule(r"(lm_head|score|qa_outputs)\.kernel", r"\1.weight", is_transposed=True),
        Rule(r"(.+)\.bias", r"\1.bias"),
    ),
    # Files saved from the bare body, as OpenAI's own are.
    renames=((r"((?:wte|wpe|h|ln_f)\..+)", r"transformer.\1"),),
    ignored=(
        r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",  # constants
        # The word embeddings again, if tied; other heads.
        r"(lm_head|score|qa_outputs|multiple_choice_head|classifier)\..+",
    ),
    may_be_missing=(r"(score|qa_outputs)\..+",),
    outputs=(r"score\..+",),
    body=(r"transformer\..+",),
)


class GPT2Attention(nnx.Module):
    """Multi-head attention of every token to itself and those before it."""

    def __init__(self, config: "GPT2Config", layer: int, make: LayerFactory):
        size = config.hidden_size // config.num_attention_heads
        self.num_heads = config.num_attention_heads
        self.scale = size**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = make.linear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = _narrow(make, config).linear(config.hidden_size, config.hidden_size)
        self.attn_dropout = make.dropout(config.attn_pdrop)
        self.resid_dropout = make.dropout(config.resid_pdrop)

    def __call__(
        self,
        hidden: Float[Array, "batch length hidden"],
        span: Span,
        past: KeyValue | None,
        take: Take,
    ) -> tuple[Float[Array, "batch taken hidden"], KeyValue]:
        """Mix the values of the visible tokens; also return the past with these tokens."""
        heads = self.c_attn(hidden).reshape(*hidden.shape[:-1], 3, self.num_heads, -1)
        query, key, value = (heads[..., part, :, :] for part in range(3))
        past = span.extend(past, key, value)
        mixed = attend(query, past, span.find_visible(), self.attn_dropout, scale=self.scale)
        return self.resid_dropout(self.c_proj(take(mixed))), past


class GPT2MLP(nnx.Module):
    """The feed-forward half of a block."""

    def __init__(self, config: "GPT2Config", make: LayerFactory):
        inner = 4 * config.hidden_size if config.n_inner is None else config.n_inner
        self.c_fc = make.linear(config.hidden_size, inner)
        self.c_proj = _narrow(make, config).linear(inner, config.hidden_size)
        self.activation = get_activation(config.activation_function)
        self.dropout = make.dropout(config.resid_pdrop)

    def __call__(
        self, hidden: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length hidden"]:
        """Widen, activate, narrow."""
        return self.dropout(self.c_proj(self.activation(self.c_fc(hidden))))


class GPT2Block(RepeatedLayer):
    """Attention, then a feed-forward half, each with a norm before and a residual after."""

    def __init__(self, config: "GPT2Config", layer: int, make: LayerFactory):
        self.ln_1 = make.layer_norm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, layer, make)
        self.ln_2 = make.layer_norm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config, make)

    def apply(
        self,
        hidden: Float[Array, "batch length hidden"],
        span: Span,
        past: KeyValue | None = None,
        take: Take = take_all,
    ) -> tuple[Float[Array, "batch taken hidden"], KeyValue]:
        """Apply both halves; also return the past with these tokens."""
        attended, past = self.attn(self.ln_1(hidden), span, past, take)
        hidden = take(hidden) + attended
        return hidden + self.mlp(self.ln_2(hidden)), past


class GPT2Model(nnx.Module):
    """Embeddings, blocks and the last norm."""

    def __init__(self, config: "GPT2Config", make: LayerFactory):
        _check_config(config)
        self.wte = make.embedding(config.vocab_size, config.hidden_size)
        self.wpe = make.embedding(config.max_position_embeddings, config.hidden_size)
        self.drop = make.dropout(config.embd_pdrop)
        blocks = (GPT2Block(config, layer, make) for layer in range(config.num_hidden_layers))
        self.h = nnx.List(list(blocks))
        self.ln_f = make.layer_norm(config.hidden_size, config.layer_norm_epsilon)

    @property
    def words(self) -> nnx.Embed:
        """Table of word embeddings."""
        return self.wte

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        span: Span,
        past: tuple[KeyValue, ...] | None = None,
        take: Take = take_all,
    ) -> tuple[Float[Array, "batch taken hidden"], tuple[KeyValue, ...]]:
        """Read tokens after the past; return the taken states, and the past with all tokens.

        Raises:
            InputError: If all tokens together exceed the position table.
        """
        slots, limit = span.is_token.shape[-1], self.wpe.num_embeddings
        if slots > limit:
            raise InputError(
                f"a sequence of {slots} tokens, new ones included, is longer than the model's "
                f"{limit} positions (n_positions). Lower --max-seq-length or max_new_tokens"
            )
        hidden = self.drop(self.wte(input_ids) + self.wpe(span.positions))
        hidden, grown = apply_layers(self.h, hidden, span, own=past, take=take)
        return self.ln_f(hidden), tuple(grown)


class GPT2LMHeadModel(CausalLM):
    """GPT-2 with scores of the next token."""

    body_name, make_body = "transformer", GPT2Model


class GPT2ForSequenceClassification(CausalSequenceClassifier):
    """GPT-2 with a score for each label of a sequence."""

    body_name, make_body = "transformer", GPT2Model


class GPT2ForQuestionAnswering(CausalQuestionAnswerer):
    """GPT-2 with scores of an answer's start and end."""

    body_name, make_body = "transformer", GPT2Model


def _narrow(make: LayerFactory, config: "GPT2Config") -> LayerFactory:
    """Return a factory for layers before a residual; more layers mean smaller weights."""
    scale = (2 * config.num_hidden_layers) ** -0.5
    return make.scaled(scale)


def _check_config(config: "GPT2Config") -> None:
    if config.add_cross_attention:
        raise InputError(
            "config.json: add_cross_attention is set, and this GPT-2 is a decoder without an "
            "encoder. Choose such a model, or unset it if the weights are a plain GPT-2's"
        )
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"config.json: n_embd {config.hidden_size} is not a multiple of "
            f"n_head {config.num_attention_heads}. Correct the one that is wrong"
        )


GPT2_SHARDINGS = {
    r"transformer\.(wte|wpe)\.embedding": (None, "fsdp"),
    r"transformer\.h\.\d+\.(attn\.c_attn|mlp\.c_fc)\.kernel": ("fsdp", "tensor"),
    r"transformer\.h\.\d+\.(attn\.c_attn|mlp\.c_fc)\.bias": ("tensor",),
    r"transformer\.h\.\d+\.(attn|mlp)\.c_proj\.kernel": ("tensor", "fsdp"),
    r"transformer\.h\.\d+\.(attn|mlp)\.c_proj\.bias": (),
    r".*\.ln_[12f]\.(scale|bias)": (),
    r"lm_head\.kernel": ("fsdp", None),
    r"(score|qa_outputs)\..*": (),
}


GPT2 = ModelSpec(
    heads={
        "sequence_classification": GPT2ForSequenceClassification,
        "question_answering": GPT2ForQuestionAnswering,
        "causal_lm": GPT2LMHeadModel,
    },
    weights=GPT2_WEIGHTS,
    target_modules=r"transformer\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)",
    sublayer_ends=r"transformer\.h\.\d+\.(attn|mlp)\.c_proj",
    layer_ends=r"transformer\.h\.\d+\.mlp\.c_proj",
    modules_to_save={
        "sequence_classification": ("score",),
        "question_answering": ("qa_outputs",),
    },
    shardings=GPT2_SHARDINGS,
    max_length=count_positions,
)

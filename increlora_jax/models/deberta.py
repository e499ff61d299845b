"""DeBERTa-v2 and -v3 with their heads; the encoder is in `deberta_encoder`.

Attribute paths are Hugging Face's names. Dense layers are plain `nnx.Linear`, called as modules.
"""

from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from increlora_jax.errors import InputError
from increlora_jax.models.deberta_encoder import DebertaModel, embedding_size
from increlora_jax.models.layers import LayerFactory, at_least_float32, get_activation
from increlora_jax.models.spec import ModelSpec
from increlora_jax.models.weight_table import Rule, WeightTable

if TYPE_CHECKING:
    from transformers import DebertaV2Config

DEBERTA_WEIGHTS = WeightTable(
    rules=(
        Rule(r"(deberta\.(?:embeddings\.\w+|encoder\.rel)_embeddings)\.embedding", r"\1.weight"),
        Rule(r"(.+\.LayerNorm)\.scale", r"\1.weight"),
        # All axes of a convolution's kernel are in the opposite order on disk.
        Rule(
            r"(.+\.(?:\w+_proj|dense|conv|decoder)|classifier|qa_outputs)\.kernel",
            r"\1.weight",
            is_transposed=True,
        ),
        Rule(r"(.+)\.bias", r"\1.bias"),
    ),
    renames=(
        (r"(.+\.LayerNorm)\.gamma", r"\1.weight"),
        (r"(.+\.LayerNorm)\.beta", r"\1.bias"),
        # Files saved from the bare encoder.
        (r"((?:embeddings|encoder)\..+)", r"deberta.\1"),
    ),
    ignored=(
        r"deberta\.embeddings\.position_ids",  # constants
        r"deberta\.embeddings\.position_embeddings\.weight",  # left over where the input has none
        r"(pooler|classifier|qa_outputs|cls|lm_predictions|mask_predictions)\..+",  # other heads
    ),
    may_be_missing=(r"(pooler|classifier|qa_outputs|cls|lm_predictions)\..+",),
    # A head for another task's labels is of no use.
    may_be_reshaped=(r"(classifier|qa_outputs)\..+",),
)


class ContextPooler(nnx.Module):
    """A dense layer on the first token, between a dropout and an activation."""

    def __init__(self, config: "DebertaV2Config", make: LayerFactory):
        self.dense = make.linear(config.hidden_size, config.hidden_size)
        self.dropout = make.dropout(config.pooler_dropout)
        self.activation = get_activation(config.pooler_hidden_act)

    def __call__(self, hidden: Float[Array, "batch length hidden"]) -> Float[Array, "batch hidden"]:
        """Sum a sequence up in one vector."""
        return self.activation(self.dense(self.dropout(hidden[:, 0])))


class DebertaForSequenceClassification(nnx.Module):
    """DeBERTa with a context pooler and a linear head; `num_labels=1` is regression.

    New weights are N(0, `config.initializer_range`²), biases 0, layer norms 1 and 0.

    Args:
      config: the architecture, as `config.json` describes it.
      num_labels: width of the head.
      dtype: what is computed in; softmax, layer norm statistics and logits are float32 at least.
      param_dtype: what the parameters are stored in.
      rngs: the streams `params` and `dropout`.
      classifier_dropout: rate before the head; None takes the configuration's own.

    Raises:
      InputError: the configuration asks for what this encoder does not do.
    """

    def __init__(
        self,
        config: "DebertaV2Config",
        *,
        num_labels: int,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        classifier_dropout: float | None = None,
    ):
        make = LayerFactory(config.initializer_range, dtype, param_dtype, rngs)
        configured = getattr(config, "cls_dropout", None)
        rates = (classifier_dropout, configured, config.hidden_dropout_prob)
        self.deberta = DebertaModel(config, make)
        self.pooler = ContextPooler(config, make)
        self.dropout = make.dropout(next(rate for rate in rates if rate is not None))
        self.classifier = make.linear(config.hidden_size, num_labels)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
    ) -> Float[Array, "batch labels"]:
        """Score each sequence; `attention_mask` is 1 on tokens and 0 on padding.

        Raises:
          InputError: the sequences are longer than the model has absolute positions.
        """
        pooled = self.pooler(self.deberta(input_ids, attention_mask, token_type_ids))
        logits = self.classifier(self.dropout(pooled))
        return logits.astype(at_least_float32(logits.dtype))


class DebertaForQuestionAnswering(nnx.Module):
    """DeBERTa that points at the first and the last token of an answer."""

    def __init__(
        self,
        config: "DebertaV2Config",
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = LayerFactory(config.initializer_range, dtype, param_dtype, rngs)
        self.deberta = DebertaModel(config, make)
        self.qa_outputs = make.linear(config.hidden_size, 2)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
        """Score each token as the answer's start and as its end.

        Raises:
          InputError: the sequences are longer than the model has absolute positions.
        """
        logits = self.qa_outputs(self.deberta(input_ids, attention_mask, token_type_ids))
        logits = logits.astype(at_least_float32(logits.dtype))
        return logits[..., 0], logits[..., 1]


class PredictionTransform(nnx.Module):
    """A dense layer, an activation and a layer norm: from a token's vector to a word's."""

    def __init__(self, config: "DebertaV2Config", features: int, make: LayerFactory):
        self.dense = make.linear(config.hidden_size, features)
        self.activation = get_activation(config.hidden_act)
        self.LayerNorm = make.layer_norm(features, config.layer_norm_eps)

    def __call__(
        self, hidden: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length word"]:
        """Make vectors that are compared with words."""
        return self.LayerNorm(self.activation(self.dense(hidden)))


class PredictionHead(PredictionTransform):
    """The head of the published checkpoints, which compares with the word embeddings."""

    def __init__(self, config: "DebertaV2Config", make: LayerFactory):
        if embedding_size(config) != config.hidden_size:
            raise InputError(
                f"config.json: embedding_size {embedding_size(config)} is not hidden_size "
                f"{config.hidden_size}, and only the masked LM head with legacy true goes with that"
            )
        super().__init__(config, config.hidden_size, make)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size, make.param_dtype))

    def score_words(
        self, hidden: Float[Array, "batch length hidden"], words: nnx.Embed
    ) -> Float[Array, "batch length vocab"]:
        """Score every word at each token."""
        return words.attend(self(hidden)) + self.bias[...]


class LegacyPredictionHead(nnx.Module):
    """Hugging Face's first head; its decoder is the word embeddings unless they are untied."""

    def __init__(self, config: "DebertaV2Config", make: LayerFactory):
        features = embedding_size(config)
        self.transform = PredictionTransform(config, features, make)
        self.is_tied = config.tie_word_embeddings
        if self.is_tied:
            self.bias = nnx.Param(jnp.zeros(config.vocab_size, make.param_dtype))
        else:
            self.decoder = make.linear(features, config.vocab_size)

    def score_words(
        self, hidden: Float[Array, "batch length hidden"], words: nnx.Embed
    ) -> Float[Array, "batch length vocab"]:
        """Score every word at each token."""
        transformed = self.transform(hidden)
        if self.is_tied:
            return words.attend(transformed) + self.bias[...]
        return self.decoder(transformed)


class DebertaForMaskedLM(nnx.Module):
    """DeBERTa that guesses the words behind the masks.

    `config.legacy` chooses the head `cls`, which no published checkpoint holds, over
    `lm_predictions`, as in PyTorch's transformers.
    """

    def __init__(
        self,
        config: "DebertaV2Config",
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = LayerFactory(config.initializer_range, dtype, param_dtype, rngs)
        self.deberta = DebertaModel(config, make)
        self.is_legacy = config.legacy
        if self.is_legacy:
            self.cls = nnx.Dict(predictions=LegacyPredictionHead(config, make))
        else:
            self.lm_predictions = nnx.Dict(lm_head=PredictionHead(config, make))

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
    ) -> Float[Array, "batch length vocab"]:
        """Score every word of the vocabulary at each token.

        Raises:
          InputError: the sequences are longer than the model has absolute positions.
        """
        hidden = self.deberta(input_ids, attention_mask, token_type_ids)
        head = self.cls.predictions if self.is_legacy else self.lm_predictions.lm_head
        logits = head.score_words(hidden, self.deberta.embeddings.word_embeddings)
        return logits.astype(at_least_float32(logits.dtype))


DEBERTA_SHARDINGS = {
    r"deberta\.embeddings\.(word|position|token_type)_embeddings\.embedding": (None, "fsdp"),
    r".*\.(attention\.self\.(pos_)?(query|key|value)_proj|intermediate\.dense)\.kernel": (
        "fsdp",
        "tensor",
    ),
    r".*\.(attention\.self\.(pos_)?(query|key|value)_proj|intermediate\.dense)\.bias": ("tensor",),
    r".*\.layer\.\d+\.(attention\.)?output\.dense\.kernel": ("tensor", "fsdp"),
    r".*\.layer\.\d+\.(attention\.)?output\.dense\.bias": (),
    r"deberta\..*\.LayerNorm\.(scale|bias)": (),
    r"deberta\.embeddings\.embed_proj\.kernel": (None, "fsdp"),
    r"deberta\.encoder\.rel_embeddings\.embedding": (None, "fsdp"),
    r"deberta\.encoder\.conv\.conv\.kernel": (None, "fsdp", "tensor"),
    r"deberta\.encoder\.conv\.conv\.bias": ("tensor",),
    r"(pooler|classifier|qa_outputs|cls|lm_predictions)\..*": (),
}


DEBERTA = ModelSpec(
    heads={
        "sequence_classification": DebertaForSequenceClassification,
        "question_answering": DebertaForQuestionAnswering,
        "masked_lm": DebertaForMaskedLM,
    },
    weights=DEBERTA_WEIGHTS,
    target_modules=(
        r"deberta\.encoder\.layer\.\d+\."
        r"(attention\.self\.(query|key|value)_proj|(attention\.output|intermediate|output)\.dense)"
    ),
    modules_to_save=("pooler", "classifier"),
    shardings=DEBERTA_SHARDINGS,
)

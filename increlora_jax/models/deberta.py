"""DeBERTa-v2 and -v3 with their heads; the encoder is in `deberta_encoder`.

Attribute paths are Hugging Face's names. Dense layers are plain `nnx.Linear`, called as modules.
"""

from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from increlora_jax.errors import InputError
from increlora_jax.models.deberta_encoder import DebertaModel, embedding_size
from increlora_jax.models.heads import (
    PredictionHead,
    PredictionTransform,
    QuestionAnswerer,
    Scorer,
    SequenceClassifier,
    compare_with_words,
)
from increlora_jax.models.layers import LayerFactory, get_activation
from increlora_jax.models.spec import ModelSpec
from increlora_jax.weights.table import Rule, WeightTable

if TYPE_CHECKING:
    from transformers import DebertaV2Config

DEBERTA_WEIGHTS = WeightTable(
    rules=(
        Rule(r"(deberta\.(?:embeddings\.\w+|encoder\.rel)_embeddings)\.embedding", r"\1.weight"),
        Rule(r"(.+\.LayerNorm)\.scale", r"\1.weight"),
        # On disk, the axes of a convolution's kernel are in the opposite order.
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
    outputs=(r"(classifier|qa_outputs)\..+",),
    body=(r"deberta\..+",),
)


class ContextPooler(nnx.Module):
    """A dense layer on the first token's state, between a dropout and an activation."""

    def __init__(self, config: "DebertaV2Config", make: LayerFactory):
        self.dense = make.linear(config.hidden_size, config.hidden_size)
        self.dropout = make.dropout(config.pooler_dropout)
        self.activation = get_activation(config.pooler_hidden_act)

    def __call__(self, state: Float[Array, "batch hidden"]) -> Float[Array, "batch hidden"]:
        """Summarize a sequence in one vector."""
        return self.activation(self.dense(self.dropout(state)))


class DebertaForSequenceClassification(SequenceClassifier):
    """DeBERTa with a context pooler and a linear head."""

    body_name, make_body = "deberta", DebertaModel
    rate_names = ("cls_dropout", "hidden_dropout_prob")

    @property
    def can_pack(self) -> bool:
        """True unless there is a convolution, which would mix neighbours in a row."""
        return self.body.encoder.conv is None

    def add_classifier(
        self, config: "DebertaV2Config", num_labels: int, rate: float, make: LayerFactory
    ) -> None:
        """Create the pooler, the dropout and the linear layer."""
        self.pooler = ContextPooler(config, make)
        self.dropout = make.dropout(rate)
        self.classifier = make.linear(config.hidden_size, num_labels)

    def compute_logits(self, state: Float[Array, "batch hidden"]) -> Float[Array, "batch labels"]:
        """Score each sequence."""
        return self.classifier(self.dropout(self.pooler(state)))


class DebertaForQuestionAnswering(QuestionAnswerer):
    """DeBERTa with scores of an answer's first and last token."""

    body_name, make_body = "deberta", DebertaModel


class TiedPredictionHead(PredictionTransform):
    """The head of the published checkpoints, tied to the word embeddings."""

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
        """Score every word at every position."""
        return compare_with_words(self(hidden), words) + self.bias[...]


class DebertaForMaskedLM(Scorer):
    """DeBERTa with scores for the words behind the masks.

    As in PyTorch's transformers, `config.legacy` chooses the head `cls` instead of
    `lm_predictions`; no published checkpoint holds `cls`.
    """

    body_name, make_body = "deberta", DebertaModel

    def add_head(self, config: "DebertaV2Config", make: LayerFactory) -> None:
        """Create one of the two heads, by Hugging Face's names."""
        self.is_legacy = config.legacy
        if self.is_legacy:
            self.cls = nnx.Dict(predictions=PredictionHead(config, embedding_size(config), make))
        else:
            self.lm_predictions = nnx.Dict(lm_head=TiedPredictionHead(config, make))

    def compute_logits(
        self, hidden: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length vocab"]:
        """Score every word at every position."""
        words = self.body.embeddings.word_embeddings
        if self.is_legacy:
            return self.cls.predictions(hidden, words)
        return self.lm_predictions.lm_head.score_words(hidden, words)


def _find_max_length(config: "DebertaV2Config") -> int | None:
    return config.max_position_embeddings if config.position_biased_input else None


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
    sublayer_ends=r"deberta\.encoder\.layer\.\d+\.(attention\.)?output\.dense",
    layer_ends=r"deberta\.encoder\.layer\.\d+\.output\.LayerNorm",
    modules_to_save={
        "sequence_classification": ("pooler", "classifier"),
        "question_answering": ("qa_outputs",),
    },
    shardings=DEBERTA_SHARDINGS,
    max_length=_find_max_length,
)

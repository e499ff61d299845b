"""RoBERTa and XLM-R: BERT's encoder with other positions and heads (Liu et al., arXiv 1907.11692).

Attribute paths are Hugging Face's names. Dense layers are plain `nnx.Linear`, called as modules.
"""

from typing import TYPE_CHECKING

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from increlora_jax.errors import InputError
from increlora_jax.models.bert import BertEmbeddings, BertModel
from increlora_jax.models.heads import (
    ClassificationHead,
    QuestionAnswerer,
    Scorer,
    SequenceClassifier,
    VocabularyHead,
)
from increlora_jax.models.layers import LayerFactory
from increlora_jax.models.packing import count_places
from increlora_jax.models.spec import ModelSpec
from increlora_jax.weights.table import Rule, WeightTable

if TYPE_CHECKING:
    from transformers import RobertaConfig

ROBERTA_WEIGHTS = WeightTable(
    rules=(
        Rule(r"(roberta\.embeddings\.\w+_embeddings)\.embedding", r"\1.weight"),
        Rule(r"(.+\.(?:LayerNorm|layer_norm))\.scale", r"\1.weight"),
        Rule(
            r"(.+\.(?:query|key|value|dense|decoder|out_proj)|qa_outputs)\.kernel",
            r"\1.weight",
            is_transposed=True,
        ),
        Rule(r"(.+)\.bias", r"\1.bias"),
    ),
    renames=(
        (r"(.+\.(?:LayerNorm|layer_norm))\.gamma", r"\1.weight"),
        (r"(.+\.(?:LayerNorm|layer_norm))\.beta", r"\1.bias"),
        # Files saved from the bare encoder.
        (r"((?:embeddings|encoder|pooler)\..+)", r"roberta.\1"),
    ),
    ignored=(
        r"roberta\.embeddings\.(position_ids|token_type_ids)",  # constants
        r"roberta\.pooler\..+",  # unused by the heads here
        # Other heads, and the repeated weights where the decoder equals the word embeddings.
        r"(lm_head|classifier|qa_outputs)\..+",
    ),
    # Files of another head, and those of the bare encoder.
    may_be_missing=(r"(lm_head|classifier|qa_outputs)\..+",),
    outputs=(r"classifier\.out_proj\..+",),
    body=(r"roberta\..+",),
)


class RobertaEmbeddings(BertEmbeddings):
    """BERT's embeddings, except that only tokens have positions, from `pad_token_id` + 1 on.

    Padding is recognized by token ids, as in PyTorch. This agrees with a tokenizer's attention
    mask, except that a padding token written in a text has no position of its own.
    """

    def __init__(self, config: "RobertaConfig", make: LayerFactory):
        super().__init__(config, make)
        self.padding_id = _find_padding_id(config)

    @property
    def max_length(self) -> int:
        """Length of the longest sequence that has positions."""
        return self.position_embeddings.num_embeddings - self.padding_id - 1

    def find_positions(
        self,
        input_ids: Int[Array, "batch length"],
        sequences: Int[Array, "batch length"] | None = None,
    ) -> Int[Array, "batch length"]:
        """Count the tokens of each sequence; padding has the position `pad_token_id`."""
        is_token = input_ids != self.padding_id
        return self.padding_id + count_places(is_token, sequences) * is_token


class RobertaModel(BertModel):
    """BERT's encoder with these embeddings."""

    embeddings_type = RobertaEmbeddings


class RobertaLMHead(VocabularyHead):
    """Dense layer, exact GELU, layer norm, then a score for every word."""

    def __init__(self, config: "RobertaConfig", make: LayerFactory):
        super().__init__(config, config.hidden_size, make)
        self.dense = make.linear(config.hidden_size, config.hidden_size)
        self.layer_norm = make.layer_norm(config.hidden_size, config.layer_norm_eps)

    def __call__(
        self, hidden: Float[Array, "batch length hidden"], words: nnx.Embed
    ) -> Float[Array, "batch length vocab"]:
        """Score every word at every position."""
        activated = jax.nn.gelu(self.dense(hidden), approximate=False)
        return self.score_words(self.layer_norm(activated), words)


class RobertaForSequenceClassification(SequenceClassifier):
    """RoBERTa with a head of two dense layers on the first token."""

    body_name, make_body = "roberta", RobertaModel

    @property
    def can_pack(self) -> bool:
        """True: attention keeps the sequences of a row apart."""
        return True

    def add_classifier(
        self, config: "RobertaConfig", num_labels: int, rate: float, make: LayerFactory
    ) -> None:
        """Create the head."""
        self.classifier = ClassificationHead(config.hidden_size, num_labels, rate, make)

    def compute_logits(self, state: Float[Array, "batch hidden"]) -> Float[Array, "batch labels"]:
        """Score each sequence."""
        return self.classifier(state)


class RobertaForQuestionAnswering(QuestionAnswerer):
    """RoBERTa with scores of an answer's start and end."""

    body_name, make_body = "roberta", RobertaModel


class RobertaForMaskedLM(Scorer):
    """RoBERTa with a score for every word of the vocabulary at every position."""

    body_name, make_body = "roberta", RobertaModel

    def add_head(self, config: "RobertaConfig", make: LayerFactory) -> None:
        """Create the head."""
        self.lm_head = RobertaLMHead(config, make)

    def compute_logits(
        self, hidden: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length vocab"]:
        """Score every word at every position."""
        return self.lm_head(hidden, self.body.embeddings.word_embeddings)


def _find_padding_id(config: "RobertaConfig") -> int:
    padding_id, rows = config.pad_token_id, config.max_position_embeddings
    if padding_id is None or not 0 <= padding_id < rows - 1:
        raise InputError(
            f"config.json: pad_token_id {padding_id} is not from 0 to {rows - 2}, and positions "
            f"are counted from it to max_position_embeddings {rows}. Give the id of the "
            "tokenizer's padding token"
        )
    return padding_id


ROBERTA_SHARDINGS = {
    r"roberta\.embeddings\.(word|position|token_type)_embeddings\.embedding": (None, "fsdp"),
    r".*\.(attention\.self\.(query|key|value)|intermediate\.dense)\.kernel": ("fsdp", "tensor"),
    r".*\.(attention\.self\.(query|key|value)|intermediate\.dense)\.bias": ("tensor",),
    r".*\.layer\.\d+\.(attention\.)?output\.dense\.kernel": ("tensor", "fsdp"),
    r".*\.layer\.\d+\.(attention\.)?output\.dense\.bias": (),
    r"roberta\..*\.LayerNorm\.(scale|bias)": (),
    r"(classifier|qa_outputs|lm_head)\..*": (),
}


ROBERTA = ModelSpec(
    heads={
        "sequence_classification": RobertaForSequenceClassification,
        "question_answering": RobertaForQuestionAnswering,
        "masked_lm": RobertaForMaskedLM,
    },
    weights=ROBERTA_WEIGHTS,
    target_modules=(
        r"roberta\.encoder\.layer\.\d+\."
        r"(attention\.self\.(query|key|value)|(attention\.output|intermediate|output)\.dense)"
    ),
    sublayer_ends=r"roberta\.encoder\.layer\.\d+\.(attention\.)?output\.dense",
    layer_ends=r"roberta\.encoder\.layer\.\d+\.output\.LayerNorm",
    modules_to_save={
        "sequence_classification": ("classifier",),
        "question_answering": ("qa_outputs",),
    },
    shardings=ROBERTA_SHARDINGS,
    max_length=lambda config: config.max_position_embeddings - _find_padding_id(config) - 1,
)

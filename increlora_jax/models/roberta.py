"""RoBERTa and XLM-R: BERT's encoder with other positions and heads (Liu et al., arXiv 1907.11692).

Attribute paths are Hugging Face's names. Dense layers are plain `nnx.Linear`, called as modules.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from increlora_jax.errors import InputError
from increlora_jax.models.bert import BertEmbeddings, BertModel, check_config
from increlora_jax.models.heads import VocabularyHead, split_span_logits
from increlora_jax.models.layers import LayerFactory, at_least_float32
from increlora_jax.models.spec import ModelSpec
from increlora_jax.models.weight_table import Rule, WeightTable

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
        r"roberta\.pooler\..+",  # none of the heads here has a use for it
        # The other heads, and what is there twice where the decoder is the word embeddings.
        r"(lm_head|classifier|qa_outputs)\..+",
    ),
    # Files of another head, and those of the bare encoder.
    may_be_missing=(r"(lm_head|classifier|qa_outputs)\..+",),
    # A head for another task's labels is of no use; what lies before its labels is.
    may_be_reshaped=(r"classifier\.out_proj\..+",),
)


class RobertaEmbeddings(BertEmbeddings):
    """As BERT's, but only tokens that are not padding have a position, from `pad_token_id` + 1 on.

    What is padding is read off the token ids, as PyTorch does: this agrees with the attention mask
    of a tokenizer, except that a padding token written in a text has no position of its own.
    """

    def __init__(self, config: "RobertaConfig", make: LayerFactory):
        super().__init__(config, make)
        self.padding_id = _find_padding_id(config)

    @property
    def max_length(self) -> int:
        """The longest sequence that has positions."""
        return self.position_embeddings.num_embeddings - self.padding_id - 1

    def find_positions(self, input_ids: Int[Array, "batch length"]) -> Int[Array, "batch length"]:
        """Count the tokens of each sequence; padding stands at `pad_token_id`."""
        is_token = input_ids != self.padding_id
        return self.padding_id + jnp.cumsum(is_token, axis=-1) * is_token


class RobertaClassificationHead(nnx.Module):
    """Dropout and dense layer, twice, with tanh between, on the first token."""

    def __init__(
        self, config: "RobertaConfig", num_labels: int, dropout: float | None, make: LayerFactory
    ):
        rates = (dropout, config.classifier_dropout, config.hidden_dropout_prob)
        self.dense = make.linear(config.hidden_size, config.hidden_size)
        self.dropout = make.dropout(next(rate for rate in rates if rate is not None))
        self.out_proj = make.linear(config.hidden_size, num_labels)

    def __call__(self, hidden: Float[Array, "batch length hidden"]) -> Float[Array, "batch labels"]:
        """Score each sequence."""
        pooled = jnp.tanh(self.dense(self.dropout(hidden[:, 0])))
        logits = self.out_proj(self.dropout(pooled))
        return logits.astype(at_least_float32(logits.dtype))


class RobertaLMHead(VocabularyHead):
    """Dense layer, exact GELU, layer norm, then a score for every word."""

    def __init__(self, config: "RobertaConfig", make: LayerFactory):
        super().__init__(config, make)
        self.dense = make.linear(config.hidden_size, config.hidden_size)
        self.layer_norm = make.layer_norm(config.hidden_size, config.layer_norm_eps)

    def __call__(
        self, hidden: Float[Array, "batch length hidden"], words: nnx.Embed
    ) -> Float[Array, "batch length vocab"]:
        """Score every word at every place."""
        activated = jax.nn.gelu(self.dense(hidden), approximate=False)
        return self.score_words(self.layer_norm(activated), words)


class RobertaForSequenceClassification(nnx.Module):
    """RoBERTa with a head of two dense layers; `num_labels=1` is regression.

    New weights are N(0, `config.initializer_range`²), biases 0, layer norms 1 and 0.

    Args:
      config: the architecture, as `config.json` describes it.
      num_labels: width of the head.
      dtype: what is computed in; softmax, layer norm statistics and logits are float32 at least.
      param_dtype: what the parameters are stored in.
      rngs: the streams `params` and `dropout`.
      classifier_dropout: rate in the head; None takes the configuration's own.

    Raises:
      InputError: the configuration asks for what this encoder does not do.
    """

    def __init__(
        self,
        config: "RobertaConfig",
        *,
        num_labels: int,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        classifier_dropout: float | None = None,
    ):
        make = LayerFactory(config.initializer_range, dtype, param_dtype, rngs)
        self.roberta = _make_body(config, make)
        self.classifier = RobertaClassificationHead(config, num_labels, classifier_dropout, make)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
    ) -> Float[Array, "batch labels"]:
        """Score each sequence; `attention_mask` is 1 on tokens and 0 on padding.

        Raises:
          InputError: the sequences are longer than the model has positions.
        """
        return self.classifier(self.roberta(input_ids, attention_mask, token_type_ids))


class RobertaForQuestionAnswering(nnx.Module):
    """RoBERTa with two scores a token: for the start of the answer, and for its end.

    Arguments, new weights and errors as for `RobertaForSequenceClassification`.
    """

    def __init__(
        self,
        config: "RobertaConfig",
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = LayerFactory(config.initializer_range, dtype, param_dtype, rngs)
        self.roberta = _make_body(config, make)
        self.qa_outputs = make.linear(config.hidden_size, 2)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
        """Score each token, padding too, as the answer's first and as its last.

        Raises:
          InputError: the sequences are longer than the model has positions.
        """
        hidden = self.roberta(input_ids, attention_mask, token_type_ids)
        return split_span_logits(self.qa_outputs(hidden))


class RobertaForMaskedLM(nnx.Module):
    """RoBERTa with a score for every word of the vocabulary at every place.

    Arguments, new weights and errors as for `RobertaForSequenceClassification`.
    """

    def __init__(
        self,
        config: "RobertaConfig",
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = LayerFactory(config.initializer_range, dtype, param_dtype, rngs)
        self.roberta = _make_body(config, make)
        self.lm_head = RobertaLMHead(config, make)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
    ) -> Float[Array, "batch length vocab"]:
        """Score every word at every place, padding too.

        Raises:
          InputError: the sequences are longer than the model has positions.
        """
        hidden = self.roberta(input_ids, attention_mask, token_type_ids)
        return self.lm_head(hidden, self.roberta.embeddings.word_embeddings)


def _make_body(config: "RobertaConfig", make: LayerFactory) -> BertModel:
    check_config(config)
    return BertModel(config, make, RobertaEmbeddings)


def _find_padding_id(config: "RobertaConfig") -> int:
    padding_id, rows = config.pad_token_id, config.max_position_embeddings
    if padding_id is None or not 0 <= padding_id < rows - 1:
        raise InputError(
            f"config.json: pad_token_id {padding_id} is not from 0 to {rows - 2}, and positions "
            f"are counted from it to max_position_embeddings {rows}; give the id of the "
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
    modules_to_save=("classifier",),
    shardings=ROBERTA_SHARDINGS,
)

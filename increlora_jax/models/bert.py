"""BERT's encoder with its heads (Devlin et al., arXiv 1810.04805).

Attribute paths are Hugging Face's names. Dense layers are plain `nnx.Linear`, called as modules.
"""

from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.errors import InputError
from increlora_jax.models.attention import KeyValue, attend, split_heads
from increlora_jax.models.heads import PredictionHead, QuestionAnswerer, Scorer, SequenceClassifier
from increlora_jax.models.layer_loop import apply_layers
from increlora_jax.models.layers import LayerFactory, get_activation
from increlora_jax.models.packing import count_places, find_seen
from increlora_jax.models.repeated_layer import RepeatedLayer
from increlora_jax.models.spec import ModelSpec, count_positions
from increlora_jax.models.taking import Take, take_all
from increlora_jax.weights.table import Rule, WeightTable

if TYPE_CHECKING:
    from transformers import BertConfig, DebertaV2Config, RobertaConfig

    EncoderConfig = BertConfig | DebertaV2Config | RobertaConfig

BERT_WEIGHTS = WeightTable(
    rules=(
        Rule(r"(bert\.embeddings\.\w+_embeddings)\.embedding", r"\1.weight"),
        Rule(r"(.+\.LayerNorm)\.scale", r"\1.weight"),
        Rule(
            r"(.+\.(?:query|key|value|dense|decoder)|classifier|qa_outputs)\.kernel",
            r"\1.weight",
            is_transposed=True,
        ),
        Rule(r"(.+)\.bias", r"\1.bias"),
    ),
    renames=(
        (r"(.+\.LayerNorm)\.gamma", r"\1.weight"),
        (r"(.+\.LayerNorm)\.beta", r"\1.bias"),
        # Files saved from the bare encoder.
        (r"((?:embeddings|encoder|pooler)\..+)", r"bert.\1"),
    ),
    ignored=(
        r"bert\.embeddings\.(position_ids|token_type_ids)",  # constants
        # Other heads, and the repeated weights where the decoder equals the word embeddings.
        r"(cls|classifier|qa_outputs|bert\.pooler)\..+",
    ),
    # Files of another head, and those of the bare encoder.
    may_be_missing=(r"(cls|classifier|qa_outputs|bert\.pooler)\..+",),
    outputs=(r"classifier\..+",),
    body=(r"bert\..+",),
)


class BertEmbeddings(nnx.Module):
    """Sum of word, position and token-type vectors, normalised."""

    def __init__(self, config: "EncoderConfig", make: LayerFactory):
        self.word_embeddings = make.embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = make.embedding(
            config.max_position_embeddings, config.hidden_size
        )
        self.token_type_embeddings = make.embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = make.layer_norm(config.hidden_size, config.layer_norm_eps)
        self.dropout = make.dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
        sequences: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length hidden"]:
        """Embed the tokens; each of a row's `sequences` has its own positions.

        Raises:
            InputError: If a sequence is longer than the table of positions.
        """
        length = input_ids.shape[-1]
        if length > self.max_length:
            raise InputError(
                f"a sequence of {length} tokens is longer than the model's {self.max_length} "
                "positions (max_position_embeddings). Lower --max-seq-length"
            )
        words = self.word_embeddings(input_ids)
        positions = self.position_embeddings(self.find_positions(input_ids, sequences))
        summed = words + self.token_type_embeddings(token_type_ids) + positions
        return self.dropout(self.LayerNorm(summed))

    @property
    def max_length(self) -> int:
        """Length of the longest sequence that has positions."""
        return self.position_embeddings.num_embeddings

    def find_positions(
        self,
        input_ids: Int[Array, "batch length"],
        sequences: Int[Array, "batch length"] | None = None,
    ) -> Int[Array, "... length"]:
        """Return the row of the position table for each token."""
        if sequences is None:
            return jnp.arange(input_ids.shape[-1])
        return count_places(jnp.ones_like(input_ids, bool), sequences) - 1


class BertSelfAttention(nnx.Module):
    """Multi-head attention of every token to every token that it sees."""

    def __init__(self, config: "EncoderConfig", make: LayerFactory):
        self.num_heads = config.num_attention_heads
        self.query = make.linear(config.hidden_size, config.hidden_size)
        self.key = make.linear(config.hidden_size, config.hidden_size)
        self.value = make.linear(config.hidden_size, config.hidden_size)
        self.dropout = make.dropout(config.attention_probs_dropout_prob)

    def __call__(
        self,
        hidden: Float[Array, "batch length hidden"],
        is_seen: Bool[Array, "batch 1 #length length"],
        take: Take = take_all,
    ) -> Float[Array, "rows taken hidden"]:
        """Mix the values of the visible tokens; the softmax is in float32 at least."""
        # If all tokens see the same, the taken ones may be chosen before the attention.
        asking, take = (take(hidden), take_all) if is_seen.shape[2] == 1 else (hidden, take)
        query, key, value = (
            split_heads(project(tokens), self.num_heads)
            for project, tokens in ((self.query, asking), (self.key, hidden), (self.value, hidden))
        )
        scale = query.shape[-1] ** -0.5
        return take(attend(query, KeyValue(key, value), is_seen, self.dropout, scale=scale))


class BertOutput(nnx.Module):
    """Dense layer, dropout, residual, layer norm: the end of both halves of a layer."""

    def __init__(self, config: "EncoderConfig", in_features: int, make: LayerFactory):
        self.dense = make.linear(in_features, config.hidden_size)
        self.LayerNorm = make.layer_norm(config.hidden_size, config.layer_norm_eps)
        self.dropout = make.dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        inner: Float[Array, "batch length inner"],
        residual: Float[Array, "batch length hidden"],
    ) -> Float[Array, "batch length hidden"]:
        """Project back to the hidden size and add the residual."""
        return self.LayerNorm(self.dropout(self.dense(inner)) + residual)


class BertAttention(nnx.Module):
    """The first half of a layer."""

    def __init__(self, config: "EncoderConfig", make: LayerFactory):
        self.self = BertSelfAttention(config, make)
        self.output = BertOutput(config, config.hidden_size, make)

    def __call__(
        self,
        hidden: Float[Array, "batch length hidden"],
        is_seen: Bool[Array, "batch 1 #length length"],
        take: Take = take_all,
    ) -> Float[Array, "rows taken hidden"]:
        """Attend and add the residual."""
        return self.output(self.self(hidden, is_seen, take), take(hidden))


class BertIntermediate(nnx.Module):
    """The widening half of the feed-forward block."""

    def __init__(self, config: "EncoderConfig", make: LayerFactory):
        self.dense = make.linear(config.hidden_size, config.intermediate_size)
        self.activation = get_activation(config.hidden_act)

    def __call__(
        self, hidden: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length inner"]:
        """Widen and activate."""
        return self.activation(self.dense(hidden))


class BertLayer(RepeatedLayer):
    """Attention, then a feed-forward block."""

    def __init__(self, config: "EncoderConfig", make: LayerFactory):
        self.attention = BertAttention(config, make)
        self.intermediate = BertIntermediate(config, make)
        self.output = BertOutput(config, config.intermediate_size, make)

    def apply(
        self,
        hidden: Float[Array, "batch length hidden"],
        is_seen: Bool[Array, "batch 1 #length length"],
        take: Take = take_all,
    ) -> Float[Array, "rows taken hidden"]:
        """Apply both halves."""
        attended = self.attention(hidden, is_seen, take)
        return self.output(self.intermediate(attended), attended)


class BertEncoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, config: "EncoderConfig", make: LayerFactory):
        self.layer = nnx.List([BertLayer(config, make) for _ in range(config.num_hidden_layers)])

    def __call__(
        self,
        hidden: Float[Array, "batch length hidden"],
        is_seen: Bool[Array, "batch 1 #length length"],
        take: Take = take_all,
    ) -> Float[Array, "rows taken hidden"]:
        """Apply every layer in turn."""
        return apply_layers(self.layer, hidden, is_seen, take=take)[0]


class BertPooler(nnx.Module):
    """A dense layer with tanh on the first token's state."""

    def __init__(self, config: "BertConfig", make: LayerFactory):
        self.dense = make.linear(config.hidden_size, config.hidden_size)

    def __call__(self, state: Float[Array, "batch hidden"]) -> Float[Array, "batch hidden"]:
        """Summarize a sequence in one vector."""
        return jnp.tanh(self.dense(state))


class BertModel(nnx.Module):
    """Embeddings and encoder."""

    embeddings_type: ClassVar[type[BertEmbeddings]] = BertEmbeddings

    def __init__(self, config: "EncoderConfig", make: LayerFactory):
        check_config(config)
        self.embeddings = self.embeddings_type(config, make)
        self.encoder = BertEncoder(config, make)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
        *,
        is_packed: bool = False,
        take: Take = take_all,
    ) -> Float[Array, "rows taken hidden"]:
        """Encode tokens as vectors; if packed, the mask numbers the sequences of a row."""
        sequences = attention_mask if is_packed else None
        embedded = self.embeddings(input_ids, token_type_ids, sequences)
        return self.encoder(embedded, find_seen(attention_mask, is_packed=is_packed), take)


class PooledBertModel(BertModel):
    """The same with a pooler, for heads that score a whole sequence."""

    def __init__(self, config: "BertConfig", make: LayerFactory):
        super().__init__(config, make)
        self.pooler = BertPooler(config, make)


class BertForSequenceClassification(SequenceClassifier):
    """BERT with a linear head on its pooler."""

    body_name, make_body = "bert", PooledBertModel

    @property
    def can_pack(self) -> bool:
        """True: attention keeps the sequences of a row apart."""
        return True

    def add_classifier(
        self, config: "BertConfig", num_labels: int, rate: float, make: LayerFactory
    ) -> None:
        """Create the dropout and the linear layer."""
        self.dropout = make.dropout(rate)
        self.classifier = make.linear(config.hidden_size, num_labels)

    def compute_logits(self, state: Float[Array, "batch hidden"]) -> Float[Array, "batch labels"]:
        """Score each sequence."""
        return self.classifier(self.dropout(self.body.pooler(state)))


class BertForQuestionAnswering(QuestionAnswerer):
    """BERT with scores of an answer's start and end."""

    body_name, make_body = "bert", BertModel


class BertForMaskedLM(Scorer):
    """BERT with a score for every word of the vocabulary at every position."""

    body_name, make_body = "bert", BertModel

    def add_head(self, config: "BertConfig", make: LayerFactory) -> None:
        """Create the head, by Hugging Face's names."""
        self.cls = nnx.Dict(predictions=PredictionHead(config, config.hidden_size, make))

    def compute_logits(
        self, hidden: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length vocab"]:
        """Score every word at every position."""
        return self.cls.predictions(hidden, self.body.embeddings.word_embeddings)


def check_config(config: "EncoderConfig") -> None:
    """Check that this encoder supports the configuration.

    Raises:
        InputError: If not; the message names the entry of `config.json`.
    """
    position = getattr(config, "position_embedding_type", None) or "absolute"
    if position != "absolute":
        raise InputError(
            f'config.json: position_embedding_type "{position}" is not done here, only "absolute"; '
            "choose a model trained with absolute positions"
        )
    for flag in ("is_decoder", "add_cross_attention"):
        if getattr(config, flag):
            raise InputError(
                f"config.json: {flag} is set, and this {config.model_type} is an encoder only. "
                "Choose an encoder, or unset it if the weights are an encoder's"
            )
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"config.json: hidden_size {config.hidden_size} is not a multiple of "
            f"num_attention_heads {config.num_attention_heads}. Correct the one that is wrong"
        )


BERT_SHARDINGS = {
    r"bert\.embeddings\.(word|position|token_type)_embeddings\.embedding": (None, "fsdp"),
    r".*\.(attention\.self\.(query|key|value)|intermediate\.dense)\.kernel": ("fsdp", "tensor"),
    r".*\.(attention\.self\.(query|key|value)|intermediate\.dense)\.bias": ("tensor",),
    r".*\.layer\.\d+\.(attention\.)?output\.dense\.kernel": ("tensor", "fsdp"),
    r".*\.layer\.\d+\.(attention\.)?output\.dense\.bias": (),
    r"bert\..*\.LayerNorm\.(scale|bias)": (),
    r"(bert\.pooler|classifier|qa_outputs|cls)\..*": (),
}


BERT = ModelSpec(
    heads={
        "sequence_classification": BertForSequenceClassification,
        "question_answering": BertForQuestionAnswering,
        "masked_lm": BertForMaskedLM,
    },
    weights=BERT_WEIGHTS,
    target_modules=(
        r"bert\.encoder\.layer\.\d+\."
        r"(attention\.self\.(query|key|value)|(attention\.output|intermediate|output)\.dense)"
    ),
    sublayer_ends=r"bert\.encoder\.layer\.\d+\.(attention\.)?output\.dense",
    layer_ends=r"bert\.encoder\.layer\.\d+\.output\.LayerNorm",
    modules_to_save={
        "sequence_classification": ("pooler", "classifier"),
        "question_answering": ("qa_outputs",),
    },
    shardings=BERT_SHARDINGS,
    max_length=count_positions,
)

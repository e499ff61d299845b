"""T5, its version 1.1 and mT5 (Raffel et al., arXiv 1910.10683; Shazeer, arXiv 2002.05202).

Attribute paths are Hugging Face's names. Dense layers are plain `nnx.Linear`, called as modules.
"""

from typing import TYPE_CHECKING, Any

from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.errors import InputError
from increlora_jax.models.encoder_decoder import (
    Cache,
    EncoderDecoderBody,
    EncoderDecoderClassifier,
    EncoderDecoderModel,
    EncoderDecoderQuestionAnswerer,
    Seq2SeqLM,
)
from increlora_jax.models.layers import LayerFactory, at_least_float32
from increlora_jax.models.spec import ModelSpec, allow_any_length
from increlora_jax.models.t5_layers import T5Decoder, T5Encoder
from increlora_jax.models.taking import Take, take_all
from increlora_jax.weights.table import Rule, WeightTable

if TYPE_CHECKING:
    from transformers import PretrainedConfig, T5Config

T5_WEIGHTS = WeightTable(
    rules=(
        Rule(r"(.*(?:shared|relative_attention_bias))\.embedding", r"\1.weight"),
        Rule(r"(.+layer_norm)\.scale", r"\1.weight"),
        Rule(
            r"(.+\.(?:[qkvo]|wi|wi_0|wi_1|wo|dense|out_proj)|lm_head|qa_outputs)\.kernel",
            r"\1.weight",
            is_transposed=True,
        ),
        Rule(r"(.+)\.bias", r"\1.bias"),
    ),
    # Only the classifier's file has the prefix; `stand_ins` restores it.
    renames=((r"transformer\.(.+)", r"\1"),),
    ignored=(
        r"(encoder|decoder)\.embed_tokens\.weight",  # the shared table again
        r"lm_head\.weight",  # the same, if tied
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",  # unused
        r"(classification_head|qa_outputs)\..+",
    ),
    stand_ins=(
        (r"transformer\.(.+)", r"\1"),
        *(
            (r"(?:transformer\.)?shared\.weight", f"{name}.weight")
            for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
        ),
        # Newer files of version 1.1 may lack a head that equals the table.
        (r"lm_head\.weight", "shared.weight"),
    ),
    may_be_missing=(r"(classification_head|qa_outputs)\..+",),
    outputs=(r"classification_head\.out_proj\..+",),
    body=(r"(transformer\.)?(shared|encoder|decoder)\..+",),
)


class T5Model(nnx.Module):
    """The shared table, the encoder and the decoder, without a head."""

    def __init__(self, config: "T5Config", make: LayerFactory):
        _check_config(config)
        self.shared = make.embedding(config.vocab_size, config.d_model)
        self.encoder = T5Encoder(config, make)
        self.decoder = T5Decoder(config, make)
        self.start_token_id = _find_start_token(config)

    def read(
        self, input_ids: Int[Array, "batch source"], attention_mask: Int[Array, "batch source"]
    ) -> Cache:
        """Encode the source, and return the cache of the decoder."""
        is_source = attention_mask > 0
        return self.decoder.look_at(self.encoder(self.shared(input_ids), is_source), is_source)

    def decode(
        self,
        ids: Int[Array, "batch target"],
        is_token: Bool[Array, "batch target"],
        cache: Cache,
        take: Take = take_all,
    ) -> Float[Array, "batch taken hidden"]:
        """Decode all tokens at once, each from the earlier ones; return the taken states."""
        return self.decoder(self.shared(ids), is_token, cache, take)

    def decode_next(
        self, tokens: Int[Array, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch 1 hidden"], Cache]:
        """Decode one more token of each row."""
        return self.decoder.advance(self.shared(tokens[:, None]), cache)


class T5WithHead(EncoderDecoderModel, T5Model):
    """A head beside the parts of the body, since Hugging Face has no name for the body."""

    scale_name = "initializer_factor"

    def add_body(self, config: Any, make: LayerFactory) -> None:
        """Create the parts of the body."""
        T5Model.__init__(self, config, make)

    @property
    def body(self) -> EncoderDecoderBody:
        """The model itself."""
        return self


class T5ForConditionalGeneration(T5WithHead, Seq2SeqLM):
    """T5 with a head over the vocabulary, tied to the shared table in the first version."""

    def add_head(self, config: "PretrainedConfig", make: LayerFactory) -> None:
        """Create the matrix of an untied head."""
        # transformers stores the original's tie_word_embeddings under this name; mT5 never ties.
        self.is_tied = getattr(config, "scale_decoder_outputs", False)
        if not self.is_tied:
            self.lm_head = make.linear(config.d_model, config.vocab_size, use_bias=False)

    def score_words(
        self, hidden: Float[Array, "batch target hidden"]
    ) -> Float[Array, "batch target vocab"]:
        """Score every word of the vocabulary."""
        if self.is_tied:
            logits = self.shared.attend(hidden * hidden.shape[-1] ** -0.5)
        else:
            logits = self.lm_head(hidden)
        return logits.astype(at_least_float32(logits.dtype))


class T5ForSequenceClassification(EncoderDecoderClassifier):
    """T5 with a score for each label of a sequence."""

    body_name, make_body, scale_name = "transformer", T5Model, "initializer_factor"

    def add_classifier(
        self, config: "PretrainedConfig", num_labels: int, rate: float, make: LayerFactory
    ) -> None:
        """Create the head, at the scale of the original."""
        super().add_classifier(config, num_labels, rate, make.scaled(config.d_model**-0.5))


class T5ForQuestionAnswering(T5WithHead, EncoderDecoderQuestionAnswerer):
    """T5 with scores of an answer's start and end."""

    def add_head(self, config: "PretrainedConfig", make: LayerFactory) -> None:
        """Create the linear layer, at the scale of the original."""
        super().add_head(config, make.scaled(config.d_model**-0.5))


def _check_config(config: "T5Config") -> None:
    if config.is_decoder or not config.is_encoder_decoder:
        raise InputError(
            "config.json: is_decoder is set or is_encoder_decoder is not, and this T5 is an "
            "encoder with a decoder. Choose a model that has both"
        )


def _find_start_token(config: "T5Config") -> int:
    # T5 starts with padding, and newer configurations omit it.
    for key in ("decoder_start_token_id", "pad_token_id"):
        if (token := getattr(config, key, None)) is not None:
            return token
    raise InputError(
        "config.json: no decoder_start_token_id and no pad_token_id. Add the first, the token "
        "with which the decoder starts"
    )


T5_SHARDINGS = {
    r"(transformer\.)?shared\.embedding": (None, "fsdp"),
    r".*\.relative_attention_bias\.embedding": (),
    r".*\.((Self|EncDec)Attention\.[qkv]|DenseReluDense\.wi(_[01])?)\.kernel": ("fsdp", "tensor"),
    r".*\.((Self|EncDec)Attention\.o|DenseReluDense\.wo)\.kernel": ("tensor", "fsdp"),
    r".*layer_norm\.scale": (),
    r"lm_head\.kernel": ("fsdp", None),
    r"(classification_head|qa_outputs)\..*": (),
}


T5 = ModelSpec(
    heads={
        "seq2seq_lm": T5ForConditionalGeneration,
        "sequence_classification": T5ForSequenceClassification,
        "question_answering": T5ForQuestionAnswering,
    },
    weights=T5_WEIGHTS,
    target_modules=(
        r"(transformer\.)?(encoder|decoder)\.block\.\d+\.layer\.\d\."
        r"((SelfAttention|EncDecAttention)\.[qkvo]|DenseReluDense\.(wi|wi_0|wi_1|wo))"
    ),
    sublayer_ends=(
        r"(transformer\.)?(encoder|decoder)\.block\.\d+\.layer\.\d\."
        r"((SelfAttention|EncDecAttention)\.o|DenseReluDense\.wo)"
    ),
    layer_ends=(r"(transformer\.)?(encoder|decoder)\.block\.\d+\.layer\.\d\.DenseReluDense\.wo"),
    modules_to_save={
        "sequence_classification": ("classification_head",),
        "question_answering": ("qa_outputs",),
    },
    shardings=T5_SHARDINGS,
    max_length=allow_any_length,
)

"""BART, an encoder with a decoder (Lewis et al., arXiv 1910.13461).

Attribute paths are Hugging Face's names. Dense layers are plain `nnx.Linear`, called as modules.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.errors import InputError
from increlora_jax.models.bart_layers import BartDecoder, BartEncoder, BartStack
from increlora_jax.models.encoder_decoder import (
    Cache,
    EncoderDecoderClassifier,
    EncoderDecoderQuestionAnswerer,
    Seq2SeqLM,
)
from increlora_jax.models.layers import LayerFactory, at_least_float32
from increlora_jax.models.spec import ModelSpec, count_positions
from increlora_jax.models.taking import Take, take_all
from increlora_jax.weights.table import Rule, WeightTable

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BART_WEIGHTS = WeightTable(
    rules=(
        Rule(r"(.+\.(?:shared|embed_tokens|embed_positions))\.embedding", r"\1.weight"),
        Rule(r"(.+\.\w*(?:layer_norm|layernorm)\w*)\.scale", r"\1.weight"),
        Rule(
            r"(.+\.(?:[qkv]_proj|out_proj|fc[12]|dense)|lm_head|qa_outputs)\.kernel",
            r"\1.weight",
            is_transposed=True,
        ),
        Rule(r"(.+)\.bias", r"\1.bias"),
        Rule(r"final_logits_bias", r"final_logits_bias"),
    ),
    # Files saved from the bare model.
    renames=((r"((?:shared|encoder|decoder)\..+)", r"model.\1"),),
    ignored=(
        r"model\.(encoder|decoder)\.(embed_tokens\.weight|version)",
        r"model\.shared\.weight",
        r"(lm_head|classification_head|qa_outputs)\..+",
        r"final_logits_bias",
    ),
    stand_ins=(
        *(
            (r"model\.shared\.weight", f"{name}.weight")
            for name in ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
        ),
        # A model that becomes untied may start from a tied one.
        (r"(?:model\.(?:encoder|decoder)\.embed_tokens|lm_head)\.weight", "model.shared.weight"),
    ),
    may_be_missing=(r"final_logits_bias", r"(classification_head|qa_outputs)\..+"),
    outputs=(r"classification_head\.out_proj\..+",),
    body=(r"model\..+",),
)


class BartModel(nnx.Module):
    """The encoder and the decoder with one table of words, or one each if untied."""

    def __init__(self, config: "PretrainedConfig", make: LayerFactory):
        _check_config(config)
        self.is_tied = config.tie_word_embeddings
        if self.is_tied:
            self.shared = make.embedding(config.vocab_size, config.d_model)
        self.encoder = BartEncoder(config, make)
        self.decoder = BartDecoder(config, make)
        self.scale = config.d_model**0.5 if config.scale_embedding else 1.0
        self.start_token_id = config.decoder_start_token_id

    def read(
        self, input_ids: Int[Array, "batch source"], attention_mask: Int[Array, "batch source"]
    ) -> Cache:
        """Encode the source, and return the cache of the decoder.

        Raises:
            InputError: If the sequences are longer than the model has positions.
        """
        is_source = attention_mask > 0
        source = self.encoder(self._embed(self.encoder, input_ids), is_source)
        return self.decoder.look_at(source, is_source)

    def decode(
        self,
        ids: Int[Array, "batch target"],
        is_token: Bool[Array, "batch target"],
        cache: Cache,
        take: Take = take_all,
    ) -> Float[Array, "batch taken hidden"]:
        """Decode all tokens at once, each from the earlier ones; return the taken states.

        Raises:
            InputError: If the sequences are longer than the model has positions.
        """
        return self.decoder(self._embed(self.decoder, ids), is_token, cache, take)

    def decode_next(
        self, tokens: Int[Array, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch 1 hidden"], Cache]:
        """Decode one more token of each row."""
        return self.decoder.advance(self._embed(self.decoder, tokens[:, None]), cache)

    def _embed(
        self, stack: BartStack, ids: Int[Array, "batch length"]
    ) -> Float[Array, "batch length hidden"]:
        table = self.shared if self.is_tied else stack.embed_tokens
        return table(ids) * self.scale


class BartForConditionalGeneration(Seq2SeqLM):
    """BART with a head over the vocabulary, which is tied to the words by default."""

    model: BartModel
    body_name, make_body, scale_name = "model", BartModel, "init_std"

    def add_head(self, config: "PretrainedConfig", make: LayerFactory) -> None:
        """Create the matrix of an untied head."""
        self.final_logits_bias = nnx.Param(jnp.zeros((1, config.vocab_size), make.param_dtype))
        if not self.model.is_tied:
            self.lm_head = make.linear(config.d_model, config.vocab_size, use_bias=False)

    def score_words(
        self, hidden: Float[Array, "batch target hidden"]
    ) -> Float[Array, "batch target vocab"]:
        """Score every word of the vocabulary."""
        score = self.model.shared.attend if self.model.is_tied else self.lm_head
        logits = score(hidden)
        # A constant of the checkpoint, not a weight to train.
        bias = jax.lax.stop_gradient(self.final_logits_bias[...])
        wide = at_least_float32(logits.dtype)
        return logits.astype(wide) + bias.astype(wide)


class BartForSequenceClassification(EncoderDecoderClassifier):
    """BART with a score for each label of a sequence."""

    body_name, make_body, scale_name = "model", BartModel, "init_std"


class BartForQuestionAnswering(EncoderDecoderQuestionAnswerer):
    """BART with scores of an answer's start and end."""

    body_name, make_body, scale_name = "model", BartModel, "init_std"


def _check_config(config: "PretrainedConfig") -> None:
    if config.is_decoder or not config.is_encoder_decoder:
        raise InputError(
            "config.json: is_decoder is set or is_encoder_decoder is not, and this BART is an "
            "encoder with a decoder. Choose a model that has both"
        )
    for flag in ("encoder_layerdrop", "decoder_layerdrop"):
        if getattr(config, flag):
            raise InputError(
                f"config.json: {flag} is {getattr(config, flag)}, and layers are not dropped "
                "here. Set it to 0, which changes nothing outside training"
            )
    for key in ("encoder_attention_heads", "decoder_attention_heads"):
        if config.d_model % getattr(config, key):
            raise InputError(
                f"config.json: d_model {config.d_model} is not a multiple of {key} "
                f"{getattr(config, key)}. Correct the one that is wrong"
            )
    if config.decoder_start_token_id is None:
        raise InputError(
            "config.json: no decoder_start_token_id. Add the token with which the decoder starts"
        )


BART_SHARDINGS = {
    r"model\.(shared|(en|de)coder\.(embed_tokens|embed_positions))\.embedding": (None, "fsdp"),
    r".*\.(\w+_attn\.[qkv]_proj|fc1)\.kernel": ("fsdp", "tensor"),
    r".*\.(\w+_attn\.[qkv]_proj|fc1)\.bias": ("tensor",),
    r".*\.(\w+_attn\.out_proj|fc2)\.kernel": ("tensor", "fsdp"),
    r".*\.(\w+_attn\.out_proj|fc2)\.bias": (),
    r".*(layer_norm|layernorm_embedding)\.(scale|bias)": (),
    r"final_logits_bias": (),
    r"lm_head\.kernel": ("fsdp", None),
    r"(classification_head|qa_outputs)\..*": (),
}


BART = ModelSpec(
    heads={
        "seq2seq_lm": BartForConditionalGeneration,
        "sequence_classification": BartForSequenceClassification,
        "question_answering": BartForQuestionAnswering,
    },
    weights=BART_WEIGHTS,
    target_modules=(
        r"model\.(encoder|decoder)\.layers\.\d+\."
        r"((self_attn|encoder_attn)\.(q|k|v|out)_proj|fc[12])"
    ),
    sublayer_ends=(
        r"model\.(encoder|decoder)\.layers\.\d+\.((self_attn|encoder_attn)\.out_proj|fc2)"
    ),
    layer_ends=r"model\.(encoder|decoder)\.layers\.\d+\.final_layer_norm",
    modules_to_save={
        "sequence_classification": ("classification_head",),
        "question_answering": ("qa_outputs",),
    },
    shardings=BART_SHARDINGS,
    max_length=count_positions,
)

"""BART, an encoder with a decoder (Lewis et al., arXiv 1910.13461).

Attribute paths are Hugging Face's names. Dense layers are plain `nnx.Linear`, called as modules.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.errors import InputError
from increlora_jax.models.bart_layers import BartDecoder, BartEncoder, BartStack
from increlora_jax.models.encoder_decoder import (
    Cache,
    ClassificationHead,
    make_room,
    shift_right,
    take_last_eos,
)
from increlora_jax.models.layers import LayerFactory, at_least_float32
from increlora_jax.models.spec import ModelSpec
from increlora_jax.models.weight_table import Rule, WeightTable

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
        # An untied model may begin as a tied one.
        (r"(?:model\.(?:encoder|decoder)\.embed_tokens|lm_head)\.weight", "model.shared.weight"),
    ),
    may_be_missing=(r"final_logits_bias", r"(classification_head|qa_outputs)\..+"),
    # A head for another task's labels is of no use.
    may_be_reshaped=(r"classification_head\.out_proj\..+",),
)


class BartModel(nnx.Module):
    """The encoder and the decoder over one table of words, or each over its own if untied."""

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
        """Encode the source and make of it what the decoder looks at.

        Raises:
          InputError: the sequences are longer than the model has positions.
        """
        is_source = attention_mask > 0
        source = self.encoder(self._embed(self.encoder, input_ids), is_source)
        return self.decoder.look_at(source, is_source)

    def decode(
        self, ids: Int[Array, "batch target"], is_token: Bool[Array, "batch target"], cache: Cache
    ) -> Float[Array, "batch target hidden"]:
        """Decode all tokens at once, each from those before it.

        Raises:
          InputError: the sequences are longer than the model has positions.
        """
        return self.decoder(self._embed(self.decoder, ids), is_token, cache)

    def advance(
        self, tokens: Int[Array, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch 1 hidden"], Cache]:
        """Decode one more token of each row."""
        return self.decoder.advance(self._embed(self.decoder, tokens[:, None]), cache)

    def decode_shifted(
        self, input_ids: Int[Array, "batch length"], attention_mask: Int[Array, "batch length"]
    ) -> Float[Array, "batch length hidden"]:
        """Decode a sequence that is its own source: the states of a classifier."""
        shifted = shift_right(input_ids, self.start_token_id)
        cache = self.read(input_ids, attention_mask)
        return self.decode(shifted, jnp.ones_like(shifted, bool), cache)

    def _embed(
        self, stack: BartStack, ids: Int[Array, "batch length"]
    ) -> Float[Array, "batch length hidden"]:
        table = self.shared if self.is_tied else stack.embed_tokens
        return table(ids) * self.scale


class BartForConditionalGeneration(nnx.Module):
    """BART with a head over the vocabulary, tied to the words unless the configuration says not.

    New weights are N(0, `config.init_std`²), biases 0, layer norms 1 and 0.

    Args:
      config: the architecture, as `config.json` describes it.
      dtype: what is computed in; softmax, layer norm statistics and logits are float32 at least.
      param_dtype: what the parameters are stored in.
      rngs: the streams `params` and `dropout`.

    Raises:
      InputError: the configuration asks for what this port does not do.
    """

    continues_prompt = False

    def __init__(
        self,
        config: "PretrainedConfig",
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = LayerFactory(config.init_std, dtype, param_dtype, rngs)
        self.model = BartModel(config, make)
        self.final_logits_bias = nnx.Param(jnp.zeros((1, config.vocab_size), param_dtype))
        if not self.model.is_tied:
            self.lm_head = make.linear(config.d_model, config.vocab_size, use_bias=False)

    def __call__(
        self,
        input_ids: Int[Array, "batch source"],
        attention_mask: Int[Array, "batch source"],
        decoder_input_ids: Int[Array, "batch target"],
        decoder_attention_mask: Int[Array, "batch target"],
    ) -> Float[Array, "batch target vocab"]:
        """Score what follows each decoder token; masks are 1 on tokens and 0 on padding.

        Raises:
          InputError: the sequences are longer than the model has positions.
        """
        cache = self.model.read(input_ids, attention_mask)
        is_token = decoder_attention_mask > 0
        return self._score(self.model.decode(decoder_input_ids, is_token, cache))

    def begin(
        self,
        input_ids: Int[Array, "batch source"],
        attention_mask: Int[Array, "batch source"],
        max_new_tokens: int,
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """Read the source; score the first new token, and make room for `max_new_tokens`.

        Raises:
          InputError: the source or `max_new_tokens` is longer than the model has positions.
        """
        self.model.decoder.check_length(max_new_tokens)
        cache = make_room(self.model.read(input_ids, attention_mask), max_new_tokens)
        return self.advance(jnp.full(input_ids.shape[0], self.model.start_token_id), cache)

    def advance(
        self, tokens: Int[Array, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """Take one more token of each row; score the next."""
        hidden, cache = self.model.advance(tokens, cache)
        return self._score(hidden)[:, 0], cache

    def _score(
        self, hidden: Float[Array, "batch target hidden"]
    ) -> Float[Array, "batch target vocab"]:
        score = self.model.shared.attend if self.model.is_tied else self.lm_head
        logits = score(hidden)
        # A constant of the checkpoint, not a weight to train.
        bias = jax.lax.stop_gradient(self.final_logits_bias[...])
        wide = at_least_float32(logits.dtype)
        return logits.astype(wide) + bias.astype(wide)


class BartForSequenceClassification(nnx.Module):
    """BART with a classifier on the decoder's state at the last eos; `num_labels=1` is regression.

    In a row without eos it is the state at the last token before padding.

    Args:
      config: the architecture, as `config.json` describes it.
      num_labels: width of the head.
      dtype: what is computed in; softmax, layer norm statistics and logits are float32 at least.
      param_dtype: what the parameters are stored in.
      rngs: the streams `params` and `dropout`.
      classifier_dropout: rate in the head; None takes the configuration's own.

    Raises:
      InputError: the configuration asks for what this port does not do.
    """

    def __init__(
        self,
        config: "PretrainedConfig",
        *,
        num_labels: int,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        classifier_dropout: float | None = None,
    ):
        make = LayerFactory(config.init_std, dtype, param_dtype, rngs)
        rate = config.classifier_dropout if classifier_dropout is None else classifier_dropout
        self.model = BartModel(config, make)
        self.classification_head = ClassificationHead(config.d_model, num_labels, rate, make)
        self.eos_token_id = config.eos_token_id

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
    ) -> Float[Array, "batch labels"]:
        """Score each sequence; BART has no token types, and ignores them.

        Raises:
          InputError: the sequences are longer than the model has positions.
        """
        states = self.model.decode_shifted(input_ids, attention_mask)
        return self.classification_head(
            take_last_eos(states, input_ids, attention_mask, self.eos_token_id)
        )


class BartForQuestionAnswering(nnx.Module):
    """BART with a linear head on the decoder's states, the question and its text being the source.

    The arguments are those of `BartForConditionalGeneration`.
    """

    def __init__(
        self,
        config: "PretrainedConfig",
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = LayerFactory(config.init_std, dtype, param_dtype, rngs)
        self.model = BartModel(config, make)
        self.qa_outputs = make.linear(config.d_model, 2)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
        """Score each token as the answer's start and as its end; token types are ignored.

        Raises:
          InputError: the sequences are longer than the model has positions.
        """
        logits = self.qa_outputs(self.model.decode_shifted(input_ids, attention_mask))
        logits = logits.astype(at_least_float32(logits.dtype))
        return logits[..., 0], logits[..., 1]


def _check_config(config: "PretrainedConfig") -> None:
    if config.is_decoder or not config.is_encoder_decoder:
        raise InputError(
            "config.json: is_decoder is set or is_encoder_decoder is not, and this BART is an "
            "encoder with a decoder; choose a model that has both"
        )
    for flag in ("encoder_layerdrop", "decoder_layerdrop"):
        if getattr(config, flag):
            raise InputError(
                f"config.json: {flag} is {getattr(config, flag)}, and layers are not dropped "
                "here; set it to 0, which changes nothing outside training"
            )
    for key in ("encoder_attention_heads", "decoder_attention_heads"):
        if config.d_model % getattr(config, key):
            raise InputError(
                f"config.json: d_model {config.d_model} is not a multiple of {key} "
                f"{getattr(config, key)}; correct the one that is wrong"
            )
    if config.decoder_start_token_id is None:
        raise InputError(
            "config.json: no decoder_start_token_id; add the token with which the decoder starts"
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
    modules_to_save=("classification_head",),
    shardings=BART_SHARDINGS,
)

"""T5, its version 1.1 and mT5 (Raffel et al., arXiv 1910.10683; Shazeer, arXiv 2002.05202).

Attribute paths are Hugging Face's names. Dense layers are plain `nnx.Linear`, called as modules.
"""

from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from increlora_jax.errors import InputError
from increlora_jax.models.encoder_decoder import (
    Cache,
    ClassificationHead,
    make_room,
    shift_right,
    take_last_eos,
)
from increlora_jax.models.layers import LayerFactory, at_least_float32
from increlora_jax.models.spec import ModelSpec
from increlora_jax.models.t5_layers import T5Decoder, T5Encoder
from increlora_jax.models.weight_table import Rule, WeightTable

if TYPE_CHECKING:
    from transformers import T5Config

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
    # Only the classifier's file has the prefix; `stand_ins` puts it back.
    renames=((r"transformer\.(.+)", r"\1"),),
    ignored=(
        r"(encoder|decoder)\.embed_tokens\.weight",  # the shared table again
        r"lm_head\.weight",  # likewise where it is tied
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",  # unused
        r"(classification_head|qa_outputs)\..+",
    ),
    stand_ins=(
        (r"transformer\.(.+)", r"\1"),
        *(
            (r"(?:transformer\.)?shared\.weight", f"{name}.weight")
            for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
        ),
        # Newer files of version 1.1 may leave out a head that equals the table.
        (r"lm_head\.weight", "shared.weight"),
    ),
    may_be_missing=(r"(classification_head|qa_outputs)\..+",),
    # A head for another task's labels is of no use.
    may_be_reshaped=(r"classification_head\.out_proj\..+",),
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
        """Encode the source and make of it what the decoder looks at."""
        is_source = attention_mask > 0
        return self.decoder.look_at(self.encoder(self.shared(input_ids), is_source), is_source)

    def decode_shifted(
        self, input_ids: Int[Array, "batch length"], attention_mask: Int[Array, "batch length"]
    ) -> Float[Array, "batch length hidden"]:
        """Decode a sequence that is its own source: the states of a classifier."""
        cache = self.read(input_ids, attention_mask)
        shifted = shift_right(input_ids, self.start_token_id)
        return self.decoder(self.shared(shifted), jnp.ones_like(shifted, bool), cache)


class T5ForConditionalGeneration(T5Model):
    """T5 with a head over the vocabulary, tied to the shared table in the first version.

    New weights are normal with the scales of the original, norms 1.

    Args:
      config: the architecture, as `config.json` describes it.
      dtype: what is computed in; softmax, norms and logits are float32 at least.
      param_dtype: what the parameters are stored in.
      rngs: the streams `params` and `dropout`.

    Raises:
      InputError: the configuration asks for what this port does not do.
    """

    continues_prompt = False

    def __init__(
        self,
        config: "T5Config",
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = LayerFactory(config.initializer_factor, dtype, param_dtype, rngs)
        super().__init__(config, make)
        # transformers keeps the original's tie_word_embeddings under this name; mT5 never ties.
        self.is_tied = getattr(config, "scale_decoder_outputs", False)
        if not self.is_tied:
            self.lm_head = make.linear(config.d_model, config.vocab_size, use_bias=False)

    def __call__(
        self,
        input_ids: Int[Array, "batch source"],
        attention_mask: Int[Array, "batch source"],
        decoder_input_ids: Int[Array, "batch target"],
        decoder_attention_mask: Int[Array, "batch target"],
    ) -> Float[Array, "batch target vocab"]:
        """Score what follows each decoder token; masks are 1 on tokens and 0 on padding."""
        cache = self.read(input_ids, attention_mask)
        embedded = self.shared(decoder_input_ids)
        return self._score(self.decoder(embedded, decoder_attention_mask > 0, cache))

    def begin(
        self,
        input_ids: Int[Array, "batch source"],
        attention_mask: Int[Array, "batch source"],
        max_new_tokens: int,
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """Read the source; score the first new token, and make room for `max_new_tokens`."""
        cache = make_room(self.read(input_ids, attention_mask), max_new_tokens)
        return self.advance(jnp.full(input_ids.shape[0], self.start_token_id), cache)

    def advance(
        self, tokens: Int[Array, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """Take one more token of each row; score the next."""
        hidden, cache = self.decoder.advance(self.shared(tokens[:, None]), cache)
        return self._score(hidden)[:, 0], cache

    def _score(
        self, hidden: Float[Array, "batch target hidden"]
    ) -> Float[Array, "batch target vocab"]:
        if self.is_tied:
            logits = self.shared.attend(hidden * hidden.shape[-1] ** -0.5)
        else:
            logits = self.lm_head(hidden)
        return logits.astype(at_least_float32(logits.dtype))


class T5ForSequenceClassification(nnx.Module):
    """T5 with a classifier on the decoder's state at the last eos; `num_labels=1` is regression.

    In a row without eos it is the state at the last token before padding.

    Args:
      config: the architecture, as `config.json` describes it.
      num_labels: width of the head.
      dtype: what is computed in; softmax, norms and logits are float32 at least.
      param_dtype: what the parameters are stored in.
      rngs: the streams `params` and `dropout`.
      classifier_dropout: rate in the head; None takes the configuration's own.

    Raises:
      InputError: the configuration asks for what this port does not do.
    """

    def __init__(
        self,
        config: "T5Config",
        *,
        num_labels: int,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        classifier_dropout: float | None = None,
    ):
        make = LayerFactory(config.initializer_factor, dtype, param_dtype, rngs)
        rate = config.classifier_dropout if classifier_dropout is None else classifier_dropout
        self.transformer = T5Model(config, make)
        self.classification_head = ClassificationHead(
            config.d_model, num_labels, rate, make.scaled(config.d_model**-0.5)
        )
        self.eos_token_id = config.eos_token_id

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
    ) -> Float[Array, "batch labels"]:
        """Score each sequence; T5 has no token types, and ignores them."""
        states = self.transformer.decode_shifted(input_ids, attention_mask)
        return self.classification_head(
            take_last_eos(states, input_ids, attention_mask, self.eos_token_id)
        )


class T5ForQuestionAnswering(T5Model):
    """T5 with a linear head on the decoder's states, the question and its text being the source.

    The arguments are those of `T5ForConditionalGeneration`.
    """

    def __init__(
        self,
        config: "T5Config",
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make = LayerFactory(config.initializer_factor, dtype, param_dtype, rngs)
        super().__init__(config, make)
        self.qa_outputs = make.scaled(config.d_model**-0.5).linear(config.d_model, 2)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"],
        token_type_ids: Int[Array, "batch length"],
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
        """Score each token as the answer's start and as its end; token types are ignored."""
        logits = self.qa_outputs(self.decode_shifted(input_ids, attention_mask))
        logits = logits.astype(at_least_float32(logits.dtype))
        return logits[..., 0], logits[..., 1]


def _check_config(config: "T5Config") -> None:
    if config.is_decoder or not config.is_encoder_decoder:
        raise InputError(
            "config.json: is_decoder is set or is_encoder_decoder is not, and this T5 is an "
            "encoder with a decoder; choose a model that has both"
        )


def _find_start_token(config: "T5Config") -> int:
    # Padding is what T5 starts with, and newer configurations leave it unsaid.
    for key in ("decoder_start_token_id", "pad_token_id"):
        if (token := getattr(config, key, None)) is not None:
            return token
    raise InputError(
        "config.json: no decoder_start_token_id and no pad_token_id; add the first, the token "
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
    modules_to_save=("classification_head",),
    shardings=T5_SHARDINGS,
)

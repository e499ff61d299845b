"""What the heads of several encoders share."""

from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from increlora_jax.models.layers import LayerFactory, at_least_float32

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class VocabularyHead(nnx.Module):
    """How a masked-LM head ends: by the word embeddings and a bias, or by a decoder of its own.

    `config.tie_word_embeddings` says which.
    """

    def __init__(self, config: "PretrainedConfig", make: LayerFactory):
        self.is_tied = config.tie_word_embeddings
        if self.is_tied:
            self.bias = nnx.Param(jnp.zeros(config.vocab_size, make.param_dtype))
        else:
            self.decoder = make.linear(config.hidden_size, config.vocab_size)

    def score_words(
        self, hidden: Float[Array, "batch length hidden"], words: nnx.Embed
    ) -> Float[Array, "batch length vocab"]:
        """Score every word of the vocabulary at every place."""
        wide = at_least_float32(hidden.dtype)
        if not self.is_tied:
            return self.decoder(hidden).astype(wide)
        table = words.embedding[...].astype(hidden.dtype)
        scores = jnp.einsum("blh,vh->blv", hidden, table, preferred_element_type=wide)
        return scores + self.bias[...].astype(wide)


def split_span_logits(
    logits: Float[Array, "batch length 2"],
) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
    """Part the scores of starts and of ends, float32 at least."""
    logits = logits.astype(at_least_float32(logits.dtype))
    return logits[..., 0], logits[..., 1]

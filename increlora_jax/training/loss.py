"""The loss of a sequence-level task."""

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from increlora_jax.training.step import Batch, Loss

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def call_model(model: nnx.Module, batch: Batch) -> Float[Array, "batch labels"]:
    """The logits of a batch, in at least float32."""
    packed = {"firsts": batch["firsts"]} if "firsts" in batch else {}
    logits = model(*(batch[name] for name in MODEL_INPUTS), **packed)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def sequence_loss(is_regression: bool) -> Loss:
    """Cross-entropy of classes, or squared error of a score; rows of weight 0 do not count."""

    def loss(model: nnx.Module, batch: Batch) -> tuple[Array, Array]:
        logits = call_model(model, batch)
        if is_regression:
            losses = jnp.square(logits[:, 0] - batch["labels"])
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        weight = batch["weight"]
        return jnp.sum(losses * weight), jnp.sum(weight)

    return loss

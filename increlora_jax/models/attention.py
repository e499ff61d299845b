"""Attention to keys and values: of present tokens, of a source, or of all tokens so far."""

from functools import partial
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.models.layers import at_least_float32


class KeyValue(NamedTuple):
    """Keys and values of an attention."""

    key: Float[Array, "batch slots heads size"]
    value: Float[Array, "batch slots heads size"]

    def pad(self, room: int) -> Self:
        """Add empty slots at the end."""
        widths = ((0, 0), (0, room), (0, 0), (0, 0))
        return type(self)(*(jnp.pad(array, widths) for array in self))

    def write(self, new: "KeyValue", first: Int[Array, ""] | int) -> Self:
        """Write the keys and values of new tokens into the slots from `first` on."""
        # All rows write the same slots: one slice, updated in place, instead of a scatter.
        write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=first, axis=1)
        return type(self)(write(self.key, new.key), write(self.value, new.value))


def split_heads(
    x: Float[Array, "*batch features"], num_heads: int
) -> Float[Array, "*batch heads size"]:
    """Split the last axis into heads."""
    return x.reshape(*x.shape[:-1], num_heads, -1)


def attend(
    query: Float[Array, "batch query heads size"],
    seen: KeyValue,
    is_seen: Bool[Array, "#batch 1 #query slots"],
    dropout: nnx.Dropout,
    *,
    scale: float = 1.0,
    bias: Float[Array, "1 heads query slots"] | None = None,
) -> Float[Array, "batch query features"]:
    """Mix the values that each query sees; several heads of queries may share a head of keys.

    Args:
        query: Queries, [batch, query, heads, size].
        seen: Keys and values, [batch, slots, heads, size].
        is_seen: Mask of visible slots, [batch, 1, query, slots].
        dropout: Dropout on the attention weights.
        scale: Factor of the scores.
        bias: Summand of the scores, [1, heads, query, slots].

    Returns:
        The mixed values with joined heads, [batch, query, features]. The softmax is in float32 at
            least.
    """
    batch, length, heads, size = query.shape
    slots, shared = seen.key.shape[1:3]
    wide = at_least_float32(query.dtype)
    query = query.reshape(batch, length, shared, heads // shared, size)
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", query, seen.key, preferred_element_type=wide)
    scores = scores.reshape(batch, heads, length, slots) * scale
    if bias is not None:
        scores = scores + bias
    # The lowest finite number instead of −inf: a row of only padding must not become NaN.
    scores = jnp.where(is_seen, scores, jnp.finfo(wide).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(seen.value.dtype))
    weights = weights.reshape(batch, shared, heads // shared, length, slots)
    return jnp.einsum("bhgqk,bkhd->bqhgd", weights, seen.value).reshape(batch, length, -1)

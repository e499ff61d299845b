"""Sequence packing: visibility and positions of several sequences in one row.

An attention mask then numbers the sequences of a row from 1 on; padding stays 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def find_seen(
    attention_mask: Int[Array, "batch length"], *, is_packed: bool
) -> Bool[Array, "batch 1 #length length"]:
    """Return the tokens [.., query, key] that a query sees: all, or those of its own sequence."""
    is_token = (attention_mask > 0)[:, None, None, :]
    if not is_packed:
        return is_token
    return is_token & (attention_mask[:, None, :, None] == attention_mask[:, None, None, :])


def count_places(
    is_counted: Bool[Array, "batch length"], sequences: Int[Array, "batch length"] | None
) -> Int[Array, "batch length"]:
    """Count along each row, including each place; restart in each of its `sequences`."""
    counts = jnp.cumsum(is_counted, axis=-1)
    if sequences is None:
        return counts
    is_first = jnp.diff(sequences, axis=-1, prepend=-1) != 0
    before = jnp.where(is_first, counts - is_counted, 0)
    return counts - jax.lax.cummax(before, axis=before.ndim - 1)

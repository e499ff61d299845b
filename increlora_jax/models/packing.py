"""Several sequences in one row, one after another: who sees whom, and who stands where.

An attention mask then numbers the sequences of a row, from 1 on; padding is 0 as always.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def find_seen(
    attention_mask: Int[Array, "batch length"], *, is_packed: bool
) -> Bool[Array, "batch 1 #length length"]:
    """Tell which tokens [.., query, key] a query sees: all, or those of its own sequence."""
    is_token = (attention_mask > 0)[:, None, None, :]
    if not is_packed:
        return is_token
    return is_token & (attention_mask[:, None, :, None] == attention_mask[:, None, None, :])


def count_places(
    is_counted: Bool[Array, "batch length"], sequences: Int[Array, "batch length"] | None
) -> Int[Array, "batch length"]:
    """Count along each row, up to each place and with it; anew in each of its `sequences`."""
    counts = jnp.cumsum(is_counted, axis=-1)
    if sequences is None:
        return counts
    is_first = jnp.diff(sequences, axis=-1, prepend=-1) != 0
    before = jnp.where(is_first, counts - is_counted, 0)
    return counts - jax.lax.cummax(before, axis=before.ndim - 1)

"""Orthogonality, which keeps the components of an update apart."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from increlora_jax.core.adapter import Adapter, Slots

Key = TypeVar("Key", bound=Hashable)


def orthogonality(adapter: Adapter, slots: Slots) -> Float[Array, "*stack 2"]:
    """Compute ‖P − I‖_F for P = AᵀA and P = B Bᵀ, over active and reserve slots (paper §3.1).

    The reserve stays in this term after the budget is spent (reference trace).
    """
    present = slots.active | slots.reserve
    gram_a = jnp.swapaxes(adapter.A, -1, -2) @ adapter.A
    gram_b = adapter.B @ jnp.swapaxes(adapter.B, -1, -2)
    return jnp.stack([_distance(gram_a, present), _distance(gram_b, present)], axis=-1)


def mean_orthogonality(
    adapters: Mapping[Key, Adapter], slots: Mapping[Key, Slots]
) -> Float[Array, ""]:
    """Average the distances over the 2M matrices of M modules."""
    distances = [orthogonality(adapters[name], slots[name]).reshape(-1) for name in adapters]
    return jnp.mean(jnp.concatenate(distances))


def _distance(
    gram: Float[Array, "*stack slots slots"], present: Bool[Array, "*stack slots"]
) -> Float[Array, "*stack"]:
    both = present[..., :, None] & present[..., None, :]
    difference = jnp.where(both, gram - jnp.eye(gram.shape[-1], dtype=gram.dtype), 0.0)
    square = jnp.sum(jnp.square(difference), axis=(-1, -2))
    # The square root has no gradient at 0, which a module without slots would ask for.
    is_zero = square == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))

"""Slots that leave the forward pass, and slots that come back: the opposite of a grant."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from increlora_jax.core.adapter import NEVER, Adapter, Slots


def prune(
    adapter: Adapter, slots: Slots, pruned: Bool[Array, "*stack slots"]
) -> tuple[Adapter, Slots]:
    """Turn slots dormant: λ ← 0 and no birth; A and B keep their values."""
    left = slots._replace(
        active=slots.active & ~pruned,
        reserve=slots.reserve & ~pruned,
        lambda_born=jnp.where(pruned, NEVER, slots.lambda_born),
        matrix_born=jnp.where(pruned, NEVER, slots.matrix_born),
    )
    return adapter._replace(lam=jnp.where(pruned, 0.0, adapter.lam)), left


def restore(slots: Slots, restored: Bool[Array, "*stack slots"], step: Int[Array, ""]) -> Slots:
    """Turn slots active; λ, A and B of a dormant slot are born at the next step."""
    waking = restored & ~slots.active
    return slots._replace(
        active=slots.active | restored,
        reserve=slots.reserve & ~restored,
        lambda_born=jnp.where(waking, step + 1, slots.lambda_born),
        matrix_born=jnp.where(waking & (slots.matrix_born > step), step + 1, slots.matrix_born),
    )

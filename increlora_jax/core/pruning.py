"""Slots that leave the forward pass, and slots that come back: the opposite of a grant."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.core.adapter import NEVER, Adapter, Slots
from increlora_jax.core.schedule import Number


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


def choose_losses(
    importance: Float[Array, " modules"],
    ranks: Int[Array, " modules"],
    *,
    top_h: Number,
    incre_rank_num: Number,
) -> Int[Array, " modules"]:
    """Count the slots that each module loses: the opposite of `core.allocator.allocate`.

    Args:
        importance: of every module.
        ranks: of every module.
        top_h: modules that lose slots, those of the lowest importance.
        incre_rank_num: slots that each loses; one stays at least.
    """
    order = jnp.argsort(jnp.where(ranks > 1, importance, jnp.inf), stable=True)
    wanted = jnp.minimum(jnp.maximum(ranks - 1, 0), incre_rank_num)[order]
    wanted = jnp.where(jnp.arange(wanted.size) < top_h, wanted, 0)
    return jnp.zeros_like(wanted).at[order].set(wanted)


def find_weakest(
    adapter: Adapter, slots: Slots, count: Int[Array, "*stack"]
) -> Bool[Array, "*stack slots"]:
    """Return the `count` active slots of the smallest update, ‖λ a bᵀ‖ = |λ| ‖a‖ ‖b‖."""
    lengths = jnp.linalg.norm(adapter.A, axis=-2) * jnp.linalg.norm(adapter.B, axis=-1)
    sizes = jnp.where(slots.active, jnp.abs(adapter.lam) * lengths, jnp.inf)
    place = jnp.argsort(jnp.argsort(sizes, axis=-1, stable=True), axis=-1)
    return slots.active & (place < count[..., None])


def restore(slots: Slots, restored: Bool[Array, "*stack slots"], step: Int[Array, ""]) -> Slots:
    """Turn slots active; λ, A and B of a dormant slot are born at the next step."""
    waking = restored & ~slots.active
    return slots._replace(
        active=slots.active | restored,
        reserve=slots.reserve & ~restored,
        lambda_born=jnp.where(waking, step + 1, slots.lambda_born),
        matrix_born=jnp.where(waking & (slots.matrix_born > step), step + 1, slots.matrix_born),
    )

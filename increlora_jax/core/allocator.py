"""Who grows: the grants of one round under an exact budget, and what a grant does to the slots."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.core.adapter import RESERVE_LAMBDA, Adapter, Slots
from increlora_jax.core.schedule import Number


def is_round(
    step: Int[Array, ""],
    total_rank: Int[Array, ""],
    *,
    budget: Number,
    warmup: Number,
    interval: Number,
) -> Bool[Array, ""]:
    """Ranks grow at step t if t > init_warmup, t % incre_interval == 0 and budget is left."""
    return (step > warmup) & (step % interval == 0) & (total_rank < budget)


def is_near_round(
    step: Number, *, warmup: Number, interval: Number, window: Number
) -> Bool[Array, ""] | bool:
    """Return whether a step is one of the last `window` steps up to a round of `is_round`."""
    first = (warmup // interval + 1) * interval
    return (first - step < window) & (-step % interval < window)


def allocate(
    importance: Float[Array, " modules"],
    available: Int[Array, " modules"],
    left: Int[Array, ""],
    *,
    top_h: Number,
    incre_rank_num: Number,
) -> Int[Array, " modules"]:
    """Grant the `top_h` most important modules up to `incre_rank_num` slots each.

    `available` counts the reserve slots a module can turn active; a module with none is full and
    the next in importance takes its place. Ties go by module order; grants are made in order of
    importance and the last one is cut to what is `left` of the budget. The published code
    overshoots the budget and lets ties add modules (DESIGN §2).
    """
    has_room = available > 0
    order = jnp.argsort(jnp.where(has_room, -importance, jnp.inf), stable=True)
    wanted = jnp.minimum(available, incre_rank_num)[order]
    wanted = jnp.where(jnp.arange(wanted.size) < top_h, wanted, 0)
    before = jnp.cumsum(wanted) - wanted
    granted = jnp.clip(left - before, 0, wanted)
    return jnp.zeros_like(granted).at[order].set(granted)


def grow(
    adapter: Adapter,
    slots: Slots,
    grant: Int[Array, "*stack"],
    step: Int[Array, ""],
    *,
    is_advance_learning: bool,
) -> tuple[Adapter, Slots]:
    """Turn the first `grant` reserve slots active and open as many dormant ones as reserve.

    λ of a new active slot enters at 1e-5 with advance learning, else at 0, and is born at the next
    step; so are A and B of the slots that become trainable: the opened ones with advance learning,
    else the activated ones.
    """
    activated = _first(slots.reserve, grant)
    active, waiting = slots.active | activated, slots.reserve & ~activated
    opened = _first(~(active | waiting), grant)
    learning = opened if is_advance_learning else activated
    entry = RESERVE_LAMBDA if is_advance_learning else 0.0
    grown = slots._replace(
        active=active,
        reserve=waiting | opened,
        lambda_born=jnp.where(activated, step + 1, slots.lambda_born),
        matrix_born=jnp.where(learning, step + 1, slots.matrix_born),
    )
    return adapter._replace(lam=jnp.where(activated, entry, adapter.lam)), grown


def open_reserve(
    slots: Slots, count: Int[Array, "*stack"], step: Int[Array, ""], *, is_advance_learning: bool
) -> Slots:
    """Open the first `count` dormant slots as reserve; born next step, if to learn."""
    opened = _first(~(slots.active | slots.reserve), count)
    born = jnp.where(opened & is_advance_learning, step + 1, slots.matrix_born)
    return slots._replace(reserve=slots.reserve | opened, matrix_born=born)


def _first(mask: Bool[Array, "*stack slots"], count: Array) -> Bool[Array, "*stack slots"]:
    """The first `count` true entries of the mask, in slot order."""
    return mask & (jnp.cumsum(mask, axis=-1) <= count[..., None])

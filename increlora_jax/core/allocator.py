"""Growth: the grants of one round under an exact budget, and the slots after a grant."""

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
    """Return whether ranks grow: t > init_warmup, t % incre_interval = 0 and budget is left.

    Args:
        step: t, from 0 [].
        total_rank: sum of the ranks before the step [].
        budget: final total rank.
        warmup: `init_warmup`, in steps.
        interval: `incre_interval`, in steps.
    """
    return (step > warmup) & (step % interval == 0) & (total_rank < budget)


def is_near_round(
    step: Number, *, warmup: Number, interval: Number, window: Number
) -> Bool[Array, ""] | bool:
    """Return whether a step is one of the last `window` steps up to a round of `is_round`.

    Args:
        step: t, from 0 [].
        warmup: `init_warmup`, in steps.
        interval: `incre_interval`, in steps.
        window: steps up to a round, the round's own among them.
    """
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
    """Grant slots to the most important modules.

    Grants are made in order of importance; ties go by module order. A module without a slot to turn
    active is full, and the next one takes its place. The last grant is cut to the budget. The
    published code overshoots the budget and lets ties add modules (DESIGN §2).

    Args:
        importance: of every module [modules].
        available: reserve slots that a module can turn active [modules].
        left: ranks until the budget is spent [].
        top_h: modules that grow in a round.
        incre_rank_num: slots that a module gets at most.

    Returns:
        The slots granted to each module [modules].
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
    """Turn the first `grant` reserve slots active and open as many dormant slots as reserve.

    λ of a new active slot starts at 1e-5 with advance learning and at 0 without. It is born at the
    next step. A and B of the opened slots are born then with advance learning; without, A and B of
    the activated slots.

    Args:
        adapter: the parameters before the round.
        slots: the masks and births before the round.
        grant: slots to turn active [*stack].
        step: of the round, from 0 [].
        is_advance_learning: whether a reserve learns in advance.

    Returns:
        The parameters and the slots after the round.
    """
    activated = first_slots(slots.reserve, grant)
    active, waiting = slots.active | activated, slots.reserve & ~activated
    opened = first_slots(~(active | waiting), grant)
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
    """Open the first `count` dormant slots as reserve.

    Args:
        slots: the masks and births before.
        count: slots to open [*stack].
        step: from 0 []; slots that learn in advance are born at the next one.
        is_advance_learning: whether a reserve learns in advance.
    """
    opened = first_slots(~(slots.active | slots.reserve), count)
    born = jnp.where(opened & is_advance_learning, step + 1, slots.matrix_born)
    return slots._replace(reserve=slots.reserve | opened, matrix_born=born)


def first_slots(mask: Bool[Array, "*stack slots"], count: Array) -> Bool[Array, "*stack slots"]:
    """Return the first `count` true entries of a mask, in slot order."""
    return mask & (jnp.cumsum(mask, axis=-1) <= count[..., None])

"""Slots that change their module: some leave and others open, at one total rank."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.special import xlogy
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.core.adapter import Adapter, Slots
from increlora_jax.core.allocator import first_slots
from increlora_jax.core.schedule import Number, as_dtype


class Exchange(NamedTuple):
    """The choice of one round.

    Attributes:
        pruned: slots that leave [modules, slots].
        granted: slots that each module gains [modules]; as many in all as leave.
    """

    pruned: Bool[Array, "modules slots"]
    granted: Int[Array, " modules"]


def exchange_slots(
    scores: Float[Array, "modules slots"],
    active: Bool[Array, "modules slots"],
    *,
    ranks: Number,
    depth: Number,
) -> Exchange:
    """Choose by the importance of slots (ElaLoRA, arXiv 2504.00254 §3).

    The candidates are the `depth` lowest slots of every module, of which one slot stays at least.
    The `ranks` lowest candidates leave. Each of the `ranks` highest gives its module a slot. Ties
    go by order. A full module gains none, and at most half of the candidates leave.

    Args:
        scores: importance of every slot.
        active: the slots that count.
        ranks: slots that change their module at most.
        depth: slots that a module loses or gains at most.
    """
    scores = jnp.where(active, scores, jnp.inf)
    place = jnp.argsort(jnp.argsort(scores, axis=-1, stable=True), axis=-1)
    count = jnp.minimum(depth, active.sum(-1, keepdims=True) - 1)
    candidates = active & (place < count)
    fits = candidates & (count - 1 - place < (~active).sum(-1, keepdims=True))
    number = jnp.minimum(jnp.minimum(ranks, candidates.sum() // 2), fits.sum())
    grown = _lowest(-scores, fits, number)
    return Exchange(_lowest(scores, candidates, number), grown.sum(-1, dtype=jnp.int32))


def exchange_by_module(
    importance: Float[Array, " modules"],
    energy: Float[Array, "modules slots"],
    active: Bool[Array, "modules slots"],
    *,
    ranks: Number,
) -> Exchange:
    """Choose by the importance of modules (FlexLoRA, arXiv 2601.22905 §3).

    The `ranks` modules of lowest importance that have more than one slot lose the one of lowest
    energy. As many others, of the highest importance and not full, gain one. Ties go by order.

    Args:
        importance: of every module.
        energy: λ² of every slot.
        active: the slots that count.
        ranks: modules that lose a slot at most; no more than half of all do.
    """
    count = active.sum(-1)
    number = jnp.minimum(ranks, importance.size // 2)
    shrinks = _lowest(importance, count > 1, number)
    grows = ~shrinks & (count < active.shape[-1])
    number = jnp.minimum(jnp.minimum(number, shrinks.sum()), grows.sum())
    weakest = jnp.argmin(jnp.where(active, energy, jnp.inf), axis=-1)
    is_weakest = jnp.arange(active.shape[-1]) == weakest[:, None]
    return Exchange(
        is_weakest & _lowest(importance, shrinks, number)[:, None],
        _lowest(-importance, grows, number).astype(jnp.int32),
    )


def spectral_entropy(
    lam: Float[Array, "*stack slots"], active: Bool[Array, "*stack slots"]
) -> Float[Array, "*stack"]:
    """Compute how evenly the energy of a matrix is spread, from 0 to 1 (FlexLoRA eq. 5).

    H = −Σ p log p / log r with p = λ² / Σ λ² over the r active slots. H of a single slot is 0; H of
    slots that are all 0 is 1, as of slots that are alike.
    """
    energy = jnp.where(active, lam * lam, 0.0)
    total, count = energy.sum(-1, keepdims=True), active.sum(-1, keepdims=True)
    even = active / jnp.maximum(count, 1).astype(lam.dtype)
    share = jnp.where(total > 0, energy / jnp.where(total > 0, total, 1.0), even)
    most = jnp.log(jnp.maximum(count[..., 0], 2).astype(lam.dtype))
    return jnp.where(count[..., 0] > 1, -xlogy(share, share).sum(-1) / most, 0.0)


def falling_count(
    step: Int[Array, ""], *, first: Number, start: Number, end: Number
) -> Int[Array, ""]:
    """Compute the slots that change their module in a round at step t (ElaLoRA §3).

    first · (1 − ((t − start) / (end − start))³), to the nearest whole number.

    Args:
        step: t.
        first: their number at first.
        start: the step before which no round is.
        end: the step from which no round is.
    """
    t, most, begin, stop = (as_dtype(n, jnp.result_type(float)) for n in (step, first, start, end))
    done = jnp.clip((t - begin) / (stop - begin), 0, 1)
    return jnp.round(most * (1 - done**3)).astype(jnp.int32)


def open_slots(
    adapter: Adapter,
    slots: Slots,
    grant: Int[Array, "*stack"],
    step: Int[Array, ""],
    fresh: Adapter,
) -> tuple[Adapter, Slots]:
    """Turn the first `grant` dormant slots active; all their entries are born at the next step.

    Args:
        adapter: the parameters before.
        slots: the masks and births before.
        grant: slots to open [*stack].
        step: the present one, from 0 [].
        fresh: the values of opened slots, of the shapes of `adapter`.
    """
    opened = first_slots(~(slots.active | slots.reserve), grant)
    mask = Adapter(opened[..., None, :], opened, opened[..., :, None])
    born = slots._replace(
        active=slots.active | opened,
        lambda_born=jnp.where(opened, step + 1, slots.lambda_born),
        matrix_born=jnp.where(opened, step + 1, slots.matrix_born),
    )
    return Adapter(*map(jnp.where, mask, fresh, adapter)), born


def _lowest(values: Array, among: Bool[Array, "*shape"], number: Array) -> Bool[Array, "*shape"]:
    """Return the `number` lowest values among some, ties by order."""
    flat = jnp.where(among, values, jnp.inf).reshape(-1)
    place = jnp.argsort(jnp.argsort(flat, stable=True)).reshape(values.shape)
    return among & (place < number)

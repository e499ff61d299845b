"""Importance of single slots, and a budget that is reached from above (AdaLoRA, 2303.10512)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.core.adapter import Adapter
from increlora_jax.core.schedule import Number, as_dtype


class EntryAverages(NamedTuple):
    """Running averages of every entry of an adapter; all begin at 0.

    Attributes:
        sensitivity: Ī, of |w · ∂L/∂w|.
        uncertainty: Ū, of the distance between a sensitivity and its average.
    """

    sensitivity: Adapter
    uncertainty: Adapter


def init_averages(adapter: Adapter) -> EntryAverages:
    """Return averages of 0."""
    zeros = jax.tree.map(jnp.zeros_like, adapter)
    return EntryAverages(zeros, zeros)


def average_entries(
    adapter: Adapter, gradient: Adapter, before: EntryAverages, beta1: Number, beta2: Number
) -> EntryAverages:
    """Move the averages by one step (AdaLoRA §3.2, eq. 8 to 10).

    I = |w · ∂L/∂w|, Ī ← β₁Ī + (1 − β₁)I, Ū ← β₂Ū + (1 − β₂)|I − Ī| with the new Ī.

    Args:
        adapter: w, the parameters.
        gradient: ∂L/∂w of the same shapes.
        before: the averages before the step.
        beta1: β₁, the decay of Ī.
        beta2: β₂, the decay of Ū.
    """
    raw = jax.tree.map(lambda w, g: jnp.abs(w * g), adapter, gradient)
    sensitivity = jax.tree.map(lambda old, new: _mix(beta1, old, new), before.sensitivity, raw)
    apart = jax.tree.map(lambda now, mean: jnp.abs(now - mean), raw, sensitivity)
    uncertainty = jax.tree.map(lambda old, new: _mix(beta2, old, new), before.uncertainty, apart)
    return EntryAverages(sensitivity, uncertainty)


def score_slots(averages: EntryAverages) -> Float[Array, "*stack slots"]:
    """Compute the importance of every slot, a triplet of a column of A, an entry of λ, a row of B.

    S = s(λ) + mean s(A) + mean s(B) with s = Ī · Ū (AdaLoRA eq. 7).
    """
    product = jax.tree.map(jnp.multiply, *averages)
    return product.lam + product.A.mean(-2) + product.B.mean(-1)


def keep_highest(
    scores: Float[Array, "modules slots"], budget: Int[Array, ""]
) -> Bool[Array, "modules slots"]:
    """Choose the `budget` slots of the highest scores over all modules, ties by order.

    PEFT masks every slot at or below a threshold, so that ties leave fewer than the budget.
    """
    order = jnp.argsort(-scores.reshape(-1), stable=True)
    numbers = jnp.arange(order.size, dtype=jnp.int32)
    places = jnp.zeros_like(numbers).at[order].set(numbers)
    return (places < budget).reshape(scores.shape)


def cubic_budget(
    step: Int[Array, ""], *, initial: Number, final: Number, start: Number, end: Number
) -> Int[Array, ""]:
    """Compute the total rank that is allowed after a step t (AdaLoRA eq. 12).

    b(t) = final + (initial − final) · (1 − (t − start) / (end − start))³, rounded down, between
    `start` and `end`; `initial` before, `final` after.

    Args:
        step: t.
        initial: the total rank at first.
        final: the total rank in the end.
        start: the last step with the first rank.
        end: the first step with the last rank.
    """
    dtype = jnp.result_type(float)
    whole = [as_dtype(number, dtype) for number in (step, initial, final, start, end)]
    t, high, low, first, last = whole
    left = jnp.clip(1 - (t - first) / (last - first), 0, 1)
    return (low + (high - low) * left**3).astype(jnp.int32)


def _mix(decay: Number, average: Array, new: Array) -> Array:
    decay = as_dtype(decay, average.dtype)
    return decay * average + (1 - decay) * new

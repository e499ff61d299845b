"""ElaLoRA: slots are pruned and opened in the same round (arXiv 2504.00254)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from increlora_jax.config import PruningConfig
from increlora_jax.core.adapter import Adapter
from increlora_jax.core.exchange import Exchange, exchange_slots
from increlora_jax.core.stacking import Group, flatten
from increlora_jax.core.triplets import EntryAverages, init_averages, score_slots
from increlora_jax.methods import base
from increlora_jax.methods.sensitivity import move_averages
from increlora_jax.methods.swapping import Rule, swapping_method
from increlora_jax.nn.skeleton import Parts

TINY = 1e-6
"""Keeps a direction finite that the others span."""


def elalora(
    model: PyTree,
    *,
    steps: int,
    config: PruningConfig = PruningConfig(),
    **given: Unpack[base.Arguments],
) -> base.Method:
    """Return ElaLoRA: the slots of lowest importance leave, and the most important modules grow.

    Importance is AdaLoRA's, S = s(λ) + mean s(A) + mean s(B) with s = Ī · Ū. The number of slots
    that change their module falls by a cubic to 0. A new slot begins with λ = 0 and unit vectors
    orthogonal to the slots that stay.

    Deviations from the published code: λ begins at 0 instead of 1e-13. Adam keeps its moments,
    unless `keep_moments` is False. A slot never changes to its own module in place.

    Args:
        model: an NNX module, which may be abstract, a `LinenModel` or a pytree of parameters.
        steps: optimizer steps of the run.
        config: the rounds; default: as `auto` chooses.
        **given: targets and settings; see `methods.base.Arguments`.

    Returns:
        The method; nothing is attached yet.

    Raises:
        InputError: targets that match nothing, or rounds that do not fit; named.

    >>> import increlora_jax as il
    >>> params = {"w": jnp.ones((4, 4)), "v": jnp.ones((4, 4))}
    >>> il.elalora(params, steps=100).rank_budget
    4
    """
    depth = config.swap_depth
    rule = Rule("elalora", depth, _init, _measure, _choose, _draw, _clear)
    return swapping_method(rule, model, steps, config, base.read_arguments(**given))


def _init(parts: Parts) -> dict[str, EntryAverages]:
    return {path: init_averages(own) for path, own in parts.adapters.items()}


def _measure(seen: base.Observation) -> dict[Group, EntryAverages]:
    end = seen.settings["total_steps"] - seen.settings["tfinal"]
    return move_averages(seen, moves=seen.step < end)


def _choose(
    state: dict[Group, EntryAverages],
    adapters: base.Adapters,
    slots: base.SlotsOf,
    paths: tuple[str, ...],
    settings: base.Settings,
    number: Array,
) -> Exchange:
    scores = {key: score_slots(averages) for key, averages in state.items()}
    active = {key: own.active for key, own in slots.items()}
    both = (flatten(values, paths, trailing=1) for values in (scores, active))
    return exchange_slots(*both, ranks=number, depth=settings["swap_depth"])


def _draw(key: Array, adapter: Adapter, kept: Bool[Array, "*stack slots"]) -> Adapter:
    """Draw unit columns of A and rows of B that are orthogonal to those of the kept slots."""
    keys = jax.random.split(key)
    A = _draw_apart(keys[0], adapter.A * kept[..., None, :])
    B = _draw_apart(keys[1], jnp.swapaxes(adapter.B, -1, -2) * kept[..., None, :])
    return Adapter(A, jnp.zeros_like(adapter.lam), jnp.swapaxes(B, -1, -2))


def _draw_apart(key: Array, columns: Float[Array, "*stack size slots"]) -> Array:
    """Draw v ~ N(0, 1) and return (v − C Cᵀ v) / ‖v − C Cᵀ v‖ for each column."""
    drawn = jax.random.normal(key, columns.shape, columns.dtype)
    apart = drawn - columns @ (jnp.swapaxes(columns, -1, -2) @ drawn)
    return apart / (jnp.linalg.norm(apart, axis=-2, keepdims=True) + TINY)


def _clear(
    state: dict[Group, EntryAverages], opened: dict[Group, Array]
) -> dict[Group, EntryAverages]:
    """Let the averages of opened slots begin at 0."""

    def clear(own: Adapter, new: Array) -> Adapter:
        mask = Adapter(new[..., None, :], new, new[..., :, None])
        return Adapter(*(jnp.where(m, 0.0, x) for m, x in zip(mask, own, strict=True)))

    return {
        key: EntryAverages(*(clear(own, opened[key]) for own in averages))
        for key, averages in state.items()
    }

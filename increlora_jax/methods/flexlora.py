"""FlexLoRA: modules of even spectra grow, those of uneven ones shrink (arXiv 2601.22905)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from increlora_jax.config import PruningConfig
from increlora_jax.core.adapter import Adapter
from increlora_jax.core.exchange import Exchange, exchange_by_module, spectral_entropy
from increlora_jax.core.stacking import flatten
from increlora_jax.methods import base
from increlora_jax.methods.swapping import Rule, swapping_method
from increlora_jax.nn.initial import INIT_STD


def flexlora(
    model: PyTree,
    *,
    steps: int,
    config: PruningConfig = PruningConfig(),
    **given: Unpack[base.Arguments],
) -> base.Method:
    """Return FlexLoRA: importance of a module is the entropy of its λ², without a gradient.

    H = −Σ p log p / log r with p = λ² / Σ λ². In a round the modules of lowest H lose their slot
    of lowest λ², and those of highest H gain one of λ = 0, so that ΔW stays as it is.

    The published code prunes the lowest λ with its sign, draws A, B ~ N(0, 1) instead of
    N(0, 0.02²), and has no number for H of rank 1, which is 0 here.

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
    >>> il.flexlora({"w": jnp.ones((4, 4))}, steps=100).rank_budget
    2
    """
    return swapping_method(_RULE, model, steps, config, base.read_arguments(**given))


def _choose(
    state: PyTree,
    adapters: base.Adapters,
    slots: base.SlotsOf,
    paths: tuple[str, ...],
    settings: base.Settings,
    number: Array,
) -> Exchange:
    lam = flatten({key: own.lam for key, own in adapters.items()}, paths, trailing=1)
    active = flatten({key: own.active for key, own in slots.items()}, paths, trailing=1)
    return exchange_by_module(spectral_entropy(lam, active), lam * lam, active, ranks=number)


def _draw(key: Array, adapter: Adapter, kept: Bool[Array, "*stack slots"]) -> Adapter:
    """Draw A, B ~ N(0, 0.02²), with λ = 0."""
    keys = jax.random.split(key)
    A, B = (
        INIT_STD * jax.random.normal(own, like.shape, like.dtype)
        for own, like in zip(keys, (adapter.A, adapter.B), strict=True)
    )
    return Adapter(A, jnp.zeros_like(adapter.lam), B)


_RULE = Rule(
    "flexlora",
    depth=1,
    init=lambda parts: (),
    measure=lambda seen: (),
    choose=_choose,
    draw=_draw,
    clear=lambda state, opened: (),
)

"""LoRA: every target keeps one fixed rank (arXiv 2106.09685)."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.core.adapter import NEVER, Adapter, Scaling, Slots
from increlora_jax.errors import InputError
from increlora_jax.methods import base
from increlora_jax.nn.model import attach, plan_targets
from increlora_jax.nn.start import start_small
from increlora_jax.nn.targets import NO_PARAMETERS, Parameters, Targets


def lora(
    model: Any,
    *,
    steps: int | None = None,
    targets: Targets | None = None,
    exclude: Targets | None = None,
    parameters: Parameters = NO_PARAMETERS,
    adapter: AdapterConfig = AdapterConfig(),
    growth: GrowthConfig = GrowthConfig(),
    is_trained: Callable[[str], bool] | None = None,
    dtype: Any = jnp.float32,
) -> base.Method:
    """y = x·W + (α/r) · x·A·B with A ~ U(±1/√in), B = 0 and r = `target_rank` slots, all active.

    It is IncreLoRA's layer with λ held at 1. The arguments are those of `increlora`, so that
    methods swap; `steps` and the rest of `growth` change nothing.

    Raises:
        InputError: targets that match nothing, or a rank that is not whole.

    >>> import increlora_jax as il
    >>> il.lora({"w": jnp.ones((4, 4)), "v": jnp.ones((4, 2))}).description
    '2 modules of rank 2'
    """
    chosen = base.choose_places(model, targets, exclude, is_trained, adapter)
    places: dict[str, Any] = {**chosen._asdict(), "parameters": parameters}
    planned = plan_targets(model, **places)
    settings = places | _settings(adapter, growth) | {"dtype": dtype}
    return base.fixed_method(
        "lora",
        _describe(planned.sizes.values(), settings["max_rank"]) + planned.describe(),
        attach=lambda model, rngs: attach(model, rngs=rngs, **settings),
        is_trained=chosen.is_trained,
    )


def _describe(sizes: Collection[tuple[int, int]], rank: int) -> str:
    """Say how many modules have the rank, and how many matrices are too narrow for it."""
    narrow = sum(min(size) < rank for size in sizes)
    less = f", {narrow} of them of what their matrix can have" if narrow else ""
    return f"{len(sizes)} modules of rank {rank}{less}"


def _settings(adapter: AdapterConfig, growth: GrowthConfig) -> dict[str, Any]:
    """Return what `attach` is given of the adapters."""
    rank = int(growth.target_rank)
    if rank != growth.target_rank:
        raise InputError(f"--target-rank {growth.target_rank} must be whole for --method lora")
    return {
        "max_rank": rank,
        "initial_rank": 1,  # `_start` opens all slots that a matrix can have
        "scaling": Scaling(adapter.lora_alpha, "target", rank),
        "dropout": adapter.lora_dropout,
        "start": _start,
    }


def _start(
    rngs: nnx.Rngs, shape: tuple[int, ...], max_rank: int, initial_rank: int, dtype: Any
) -> tuple[Adapter, Slots]:
    """Draw A, and put B to 0 and λ to 1, for good; every slot is active."""
    adapter, slots = start_small(rngs, shape, max_rank, max_rank, dtype)
    bound = shape[-2] ** -0.5
    A = jax.random.uniform(rngs.params(), adapter.A.shape, dtype, -bound, bound)
    fixed = slots._replace(lambda_born=jnp.full_like(slots.lambda_born, NEVER))
    return Adapter(A, jnp.ones_like(adapter.lam), jnp.zeros_like(adapter.B)), fixed

"""LoRA: every target keeps one fixed rank (arXiv 2106.09685)."""

from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.core.adapter import NEVER, Adapter, Scaling, Slots
from increlora_jax.errors import InputError
from increlora_jax.methods import base
from increlora_jax.nn.any_model import attach, plan_targets
from increlora_jax.nn.initial import start_small


def lora(
    model: Any,
    *,
    steps: int | None = None,
    **given: Unpack[base.Arguments],
) -> base.Method:
    """y = x·W + s · x·A·B with A ~ U(±1/√in), B = 0 and r = `target_rank` slots, all active.

    It is IncreLoRA's layer with λ held at 1. The arguments are those of `increlora`, so that
    methods swap; `steps` and the rest of `growth` change nothing. s is α/r, and α/√r if
    `adapter.scaling` is `rsqrt`: the present rank and the target rank are one.

    Raises:
        InputError: targets that match nothing, or a rank that is not whole.

    >>> import increlora_jax as il
    >>> il.lora({"w": jnp.ones((4, 4)), "v": jnp.ones((4, 2))}).description
    '2 modules of rank 2'
    """
    asked = base.read_arguments(**given)
    places = asked.places(model)
    planned = plan_targets(model, **places)
    _check_rank(planned.sizes, int(asked.growth.target_rank))
    settings = places | _settings(asked.adapter, asked.growth) | {"dtype": asked.dtype}
    return base.fixed_method(
        "lora",
        f"{len(planned.sizes)} modules of rank {settings['max_rank']}{planned.describe()}",
        attach=lambda model, rngs: attach(model, rngs=rngs, **settings),
        is_trained=places["is_trained"],
    )


def _check_rank(sizes: Mapping[str, tuple[int, int]], rank: int) -> None:
    for name, (inputs, outputs) in sizes.items():
        if rank > min(inputs, outputs):
            raise InputError(
                f"target_rank {rank} of {name} exceeds its {inputs} × {outputs} kernel; lower "
                f"--target-rank, or leave {name} out with --exclude-modules"
            )


def _settings(adapter: AdapterConfig, growth: GrowthConfig) -> dict[str, Any]:
    """Return what `attach` is given of the adapters."""
    rank = int(growth.target_rank)
    if rank != growth.target_rank:
        raise InputError(f"--target-rank {growth.target_rank} must be whole for --method lora")
    return {
        "max_rank": rank,
        "initial_rank": rank,
        "scaling": _scaling_of(adapter, rank),
        "dropout": adapter.lora_dropout,
        "start": _start,
    }


def _scaling_of(adapter: AdapterConfig, rank: int) -> Scaling:
    """Return the rule for s of a fixed rank."""
    if adapter.scaling == "rsqrt":
        return adapter.scaling_rule(rank)
    return Scaling(adapter.lora_alpha, "target", rank)


def _start(
    rngs: nnx.Rngs, shape: tuple[int, ...], max_rank: int, initial_rank: int, dtype: Any
) -> tuple[Adapter, Slots]:
    """Draw A, and put B to 0 and λ to 1, for good."""
    adapter, slots = start_small(rngs, shape, max_rank, initial_rank, dtype)
    bound = shape[-2] ** -0.5
    A = jax.random.uniform(rngs.params(), adapter.A.shape, dtype, -bound, bound)
    fixed = slots._replace(lambda_born=jnp.full_like(slots.lambda_born, NEVER))
    return Adapter(A, jnp.ones_like(adapter.lam), jnp.zeros_like(adapter.B)), fixed

"""LoRA: every target keeps one fixed rank (arXiv 2106.09685)."""

from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import PyTree

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.core.adapter import NEVER, Adapter, Scaling, Slots
from increlora_jax.core.first_values import WIDTHS
from increlora_jax.errors import InputError
from increlora_jax.methods import base
from increlora_jax.nn.any_model import attach, plan_targets
from increlora_jax.nn.initial import start_small


def lora(
    model: PyTree,
    *,
    steps: int | None = None,
    **given: Unpack[base.Arguments],
) -> base.Method:
    """Return LoRA of rank r: y = x·W + s · x·A·B, with A ~ U(±1/√in) and B = 0.

    The layer is IncreLoRA's, with λ held at 1 and all r slots active. s is α/r. If
    `adapter.scaling` is `rsqrt`, s is α/√r.

    Args:
        model: an NNX module, which may be abstract, a `LinenModel` or a pytree of parameters.
        steps: optimizer steps of the run, which are not used; default None.
        **given: targets and settings; r is `growth.target_rank`; see `methods.base.Arguments`.

    Returns:
        The method; nothing is attached yet.

    Raises:
        InputError: targets that match nothing, or a rank that is not whole.

    >>> import increlora_jax as il
    >>> il.lora({"w": jnp.ones((4, 4)), "v": jnp.ones((4, 2))}).description
    '2 modules of rank 2'
    """
    asked = base.read_arguments(**given)
    places = asked.places(model)
    planned = plan_targets(model, **places)
    settings = places | _settings(asked.adapter, asked.growth) | {"dtype": asked.dtype}
    rank = settings["initial_rank"]
    _check_rank(planned.sizes, rank)
    settings["max_rank"] = widen(planned.sizes, dict.fromkeys(planned.sizes, rank), asked.adapter)
    return base.fixed_method(
        "lora",
        f"{len(planned.sizes)} modules of rank {rank}{planned.describe()}",
        attach=lambda model, rngs: attach(model, rngs=rngs, **settings),
        is_trained=places["is_trained"],
    )


def _check_rank(sizes: Mapping[str, tuple[int, int]], rank: int) -> None:
    for name, (inputs, outputs) in sizes.items():
        if rank > min(inputs, outputs):
            raise InputError(
                f"target_rank {rank} of {name} exceeds its {inputs} × {outputs} kernel. Lower "
                f"--target-rank, or leave {name} out with --exclude-modules"
            )


def widen(
    sizes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int], adapter: AdapterConfig
) -> dict[str, int]:
    """Return the slots of every buffer, which `--init` may need more of than the rank.

    Args:
        sizes: (in, out) of every module.
        ranks: of every module.
        adapter: the configuration.

    Raises:
        InputError: a kernel too small for PiSSA's slots.
    """
    widths = {name: WIDTHS[adapter.init] * rank for name, rank in ranks.items()}
    small = [name for name, width in widths.items() if width > min(sizes[name])]
    if small and adapter.init == "pissa":
        raise InputError(
            f"--init pissa needs {widths[small[0]]} slots, more than {small[0]} can have. Lower "
            "--target-rank, or leave it out with --exclude-modules"
        )
    return {name: min(width, *sizes[name]) for name, width in widths.items()}


def _settings(adapter: AdapterConfig, growth: GrowthConfig) -> dict[str, Any]:
    """Return what `attach` is given of the adapters."""
    rank = int(growth.target_rank)
    if rank != growth.target_rank:
        raise InputError(
            f"--target-rank {growth.target_rank} must be whole for --method lora. Round it"
        )
    return {
        "initial_rank": rank,
        "scaling": _scaling_of(adapter, rank),
        "dropout": adapter.lora_dropout,
        "start": start_at_zero,
    }


def _scaling_of(adapter: AdapterConfig, rank: int) -> Scaling:
    """Return the rule for s of a fixed rank."""
    if adapter.scaling == "rsqrt":
        return adapter.scaling_rule(rank)
    return Scaling(adapter.lora_alpha, "target", rank)


def start_at_zero(
    rngs: nnx.Rngs, shape: tuple[int, ...], max_rank: int, initial_rank: int, dtype: DTypeLike
) -> tuple[Adapter, Slots]:
    """Draw A, and put B to 0 and λ to 1, for good.

    Args:
        rngs: the random streams; `params` is used.
        shape: (*stack, inputs, outputs).
        max_rank: slots of the buffer.
        initial_rank: active slots.
        dtype: of the adapter.
    """
    adapter, slots = start_small(rngs, shape, max_rank, initial_rank, dtype)
    bound = shape[-2] ** -0.5
    A = jax.random.uniform(rngs.params(), adapter.A.shape, dtype, -bound, bound)
    fixed = slots._replace(lambda_born=jnp.full_like(slots.lambda_born, NEVER))
    return Adapter(A, jnp.ones_like(adapter.lam), jnp.zeros_like(adapter.B)), fixed

"""The first values of adapters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from increlora_jax.core.adapter import Adapter, Slots, init_slots
from increlora_jax.nn.kernels import KernelAxes
from increlora_jax.nn.targets import slots_for

INIT_STD = 0.02
"""Standard deviation of A and B in every slot at the start (DESIGN §2)."""

Start = Callable[[nnx.Rngs, tuple[int, ...], int, int, Any], tuple[Adapter, Slots]]
"""(rngs, (*stack, inputs, outputs), max_rank, initial_rank, dtype) → an adapter and its slots."""


def start_small(
    rngs: nnx.Rngs, shape: tuple[int, ...], max_rank: int, initial_rank: int, dtype: Any
) -> tuple[Adapter, Slots]:
    """A, B ~ N(0, 0.02²) in every slot and λ = 0 (DESIGN §2)."""
    *stack, inputs, outputs = shape
    normal = jax.nn.initializers.normal(INIT_STD)
    adapter = Adapter(
        A=normal(rngs.params(), (*stack, inputs, max_rank), dtype),
        lam=jnp.zeros((*stack, max_rank), dtype),
        B=normal(rngs.params(), (*stack, max_rank, outputs), dtype),
    )
    return adapter, init_slots(max_rank, initial_rank, tuple(stack))


def start_adapter(
    path: str,
    axes: KernelAxes,
    shape: tuple[int, ...],
    max_rank: int | dict[str, int],
    initial_rank: int,
    rngs: nnx.Rngs,
    dtype: Any,
    start: Start,
) -> tuple[Adapter, Slots]:
    """The first adapter and slots of one kernel."""
    matrix, stack = axes.matrix_shape(shape), axes.stack_shape(shape)
    slots = slots_for(path, stack, matrix, max_rank, initial_rank)
    return start(rngs, (*stack, *matrix), slots, initial_rank, dtype)

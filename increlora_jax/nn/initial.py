"""The first values of adapters."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from increlora_jax.core.adapter import Adapter, Scaling, Slots, init_slots
from increlora_jax.nn.targets import Site, slots_for

INIT_STD = 0.02
"""Standard deviation of A and B in every slot at the start (DESIGN §2)."""

DEFAULT_SCALING = Scaling(16.0)
"""α/r with the default α."""

Start = Callable[[nnx.Rngs, tuple[int, ...], int, int, DTypeLike], tuple[Adapter, Slots]]
"""(rngs, (*stack, inputs, outputs), max_rank, initial_rank, dtype) → an adapter and its slots."""


def start_small(
    rngs: nnx.Rngs, shape: tuple[int, ...], max_rank: int, initial_rank: int, dtype: DTypeLike
) -> tuple[Adapter, Slots]:
    """Draw A, B ~ N(0, 0.02²) in every slot, with λ = 0 (DESIGN §2).

    Args:
        rngs: the random streams; `params` is used.
        shape: (*stack, inputs, outputs).
        max_rank: slots of the buffer.
        initial_rank: active slots.
        dtype: of the adapter.
    """
    *stack, inputs, outputs = shape
    normal = jax.nn.initializers.normal(INIT_STD)
    adapter = Adapter(
        A=normal(rngs.params(), (*stack, inputs, max_rank), dtype),
        lam=jnp.zeros((*stack, max_rank), dtype),
        B=normal(rngs.params(), (*stack, max_rank, outputs), dtype),
    )
    return adapter, init_slots(max_rank, initial_rank, tuple(stack))


class AdapterArguments(TypedDict, total=False):
    """Fields of `AdapterSettings` with a default, as keywords; see `any_model.attach`."""

    max_rank: int | Mapping[str, int]
    initial_rank: int
    scaling: Scaling
    dropout: float
    dtype: DTypeLike
    start: Start


class AdapterSettings(NamedTuple):
    """Settings that all adapters of a model share; see `any_model.attach`."""

    rngs: nnx.Rngs
    max_rank: int | Mapping[str, int] = 8
    initial_rank: int = 1
    scaling: Scaling = DEFAULT_SCALING
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    start: Start = start_small

    def begin(self, path: str, site: Site) -> tuple[Adapter, Slots]:
        """Draw the adapter of a site, and its slots."""
        matrix, stack = site.axes.matrix_shape(site.shape), site.axes.stack_shape(site.shape)
        slots = slots_for(path, stack, matrix, self.max_rank, self.initial_rank)
        return self.start(self.rngs, (*stack, *matrix), slots, self.initial_rank, self.dtype)

    def begin_all(self, sites: Mapping[str, Site]) -> tuple[dict[str, Adapter], dict[str, Slots]]:
        """Draw the adapters of sites, and their slots, by path."""
        begun = {path: self.begin(path, site) for path, site in sites.items()}
        adapters = {path: adapter for path, (adapter, _) in begun.items()}
        return adapters, {path: slots for path, (_, slots) in begun.items()}

"""The number of parameters that a model trains, and the rank of every module."""

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from increlora_jax.core.adapter import NEVER, Adapter, Slots
from increlora_jax.nn.bottleneck import is_bottleneck
from increlora_jax.nn.dora import is_magnitude
from increlora_jax.nn.kernels import path_of, stack_names
from increlora_jax.nn.skeleton import Parts


class TrainableReport(NamedTuple):
    """Counts of parameters, and the rank of every module.

    Attributes:
        active: parameters in active slots.
        buffer: parameters in all slots.
        head: parameters that learn in full.
        added: those of them that the method has added to the model.
        base: frozen parameters.
        ranks: the rank of every module by name.
        full: modules whose buffer has no slot to grow into.
    """

    active: int
    buffer: int
    head: int
    added: int
    base: int
    ranks: dict[str, int]
    full: tuple[str, ...]

    @property
    def total_rank(self) -> int:
        """Return the sum of the ranks of all modules."""
        return sum(self.ranks.values())

    def describe(self) -> str:
        """Return the counts in one line for the user."""
        share = (self.active + self.head) / (self.base + self.head + self.active)
        return (
            f"trainable parameters: {self.active:,} in {self.total_rank} active slots "
            f"({self.buffer:,} in buffers) + {self.head:,} in full, over a frozen base of "
            f"{self.base:,} ({share:.2%})"
        )


def report(parts: Parts, ranks: Mapping[str, int] | None = None) -> TrainableReport:
    """Count the parameters and ranks of a model; waits for the device.

    Args:
        parts: a model taken apart, as `il.split` or `trainer.parts` returns it.
        ranks: the rank of every module at another moment; default: those of the masks.

    Returns:
        The counts.

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> _, parts = il.split(il.attach({"w": jnp.ones((6, 4))}), lambda path: False)
    >>> counted = il.report(parts)
    >>> counted.total_rank, counted.active, counted.buffer, counted.base
    (1, 11, 44, 24)
    """
    ranks = ranks_of(parts.slots) if ranks is None else dict(ranks)
    sizes = slot_sizes(parts.adapters, parts.slots)
    widths = {path: held.active.shape[-1] for path, held in parts.slots.items()}
    return TrainableReport(
        active=sum(rank * sizes[path_of(name)] for name, rank in ranks.items()),
        buffer=sum(own.lam.size * sizes[path] for path, own in parts.adapters.items()),
        head=_count(parts.head),
        added=_count({path: value for path, value in parts.head.items() if _is_added(path)}),
        base=sum(map(prod, _shapes((parts.base, parts.statistics)))),
        ranks=ranks,
        full=tuple(name for name, rank in ranks.items() if rank == widths[path_of(name)]),
    )


def ranks_of(slots: dict[str, Slots]) -> dict[str, int]:
    """Return the rank of every module, each of a stack apart; waits for the device."""
    return {
        name: int(rank)
        for path, held in jax.device_get(slots).items()
        for name, rank in zip(
            stack_names(path, held.is_advancing.shape),
            np.sum(_counted(held), axis=-1).reshape(-1),
            strict=True,
        )
    }


def slot_sizes(adapters: Mapping[str, Adapter], slots: Mapping[str, Slots]) -> dict[str, int]:
    """Return the parameters of one slot of every adapter: a column of A, a row of B, and λ.

    A λ that is never born, as LoRA's, is none; waits for the device.
    """
    births = jax.device_get({path: own.lambda_born for path, own in slots.items()})
    return {
        path: own.A.shape[-2] + own.B.shape[-1] + int((births[path] != NEVER).any())
        for path, own in adapters.items()
    }


def _is_added(path: str) -> bool:
    return is_bottleneck(path) or is_magnitude(path)


def _counted(slots: Slots) -> np.ndarray:
    """Return `Slots.counted` of masks on the host."""
    return np.asarray(slots.active) & ~np.asarray(slots.reserve)


def _shapes(tree: PyTree) -> list[tuple[int, ...]]:
    """List the shapes of the arrays of a tree; a quantised kernel is one array."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return [leaf.shape for leaf in leaves]


def _count(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

"""The number of parameters that a model trains, and the rank of every module."""

from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np

from increlora_jax.core.adapter import Slots
from increlora_jax.nn.kernels import path_of, stack_names
from increlora_jax.nn.skeleton import Parts


class TrainableReport(NamedTuple):
    """Counts of parameters; `active` is the part of `buffer` that lies in active slots."""

    active: int
    buffer: int
    head: int
    base: int
    ranks: dict[str, int]
    full: tuple[str, ...]  # modules whose buffer holds no slot to grow into

    @property
    def total_rank(self) -> int:
        """Sum of the ranks of all modules."""
        return sum(self.ranks.values())

    def describe(self) -> str:
        """Say it in one line, for people."""
        share = (self.active + self.head) / (self.base + self.head + self.active)
        return (
            f"trainable parameters: {self.active:,} in {self.total_rank} active slots "
            f"({self.buffer:,} in buffers) + {self.head:,} in full, over a frozen base of "
            f"{self.base:,} ({share:.2%})"
        )


def report(parts: Parts) -> TrainableReport:
    """Count what `parts` holds; reads the masks, so it waits for the device."""
    slots = jax.device_get(parts.slots)
    ranks = ranks_of(slots)
    active = sum(
        int(_counted(slots[path]).sum()) * (a.A.shape[-2] + a.B.shape[-1] + 1)
        for path, a in parts.adapters.items()
    )
    widths = {path: held.active.shape[-1] for path, held in slots.items()}
    return TrainableReport(
        active=active,
        buffer=_count(parts.adapters),
        head=_count(parts.head),
        base=sum(prod(array.shape) for array in _arrays((parts.base, parts.statistics))),
        ranks=ranks,
        full=tuple(name for name, rank in ranks.items() if rank == widths[path_of(name)]),
    )


def ranks_of(slots: dict[str, Slots]) -> dict[str, int]:
    """The rank of every module, each of a stack apart; reads the masks."""
    return {
        name: int(rank)
        for path, held in jax.device_get(slots).items()
        for name, rank in zip(
            stack_names(path, held.is_advancing.shape),
            np.sum(_counted(held), axis=-1).reshape(-1),
            strict=True,
        )
    }


def _counted(slots: Slots) -> np.ndarray:
    """Return `Slots.counted` of masks that are read to the host."""
    return np.asarray(slots.active) & ~np.asarray(slots.reserve)


def _arrays(tree: object) -> list[Any]:
    """List the arrays of a tree, a quantised kernel as the one that it stands for."""
    return jax.tree.leaves(tree, is_leaf=lambda node: hasattr(node, "shape"))


def _count(tree: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

"""How many parameters a model trains, and the rank of every module."""

from typing import NamedTuple

import jax
import numpy as np

from increlora_jax.nn.parts import Parts


class TrainableReport(NamedTuple):
    """Counts of parameters; `active` is the part of `buffer` that lies in active slots."""

    active: int
    buffer: int
    head: int
    base: int
    ranks: dict[str, int]

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
    ranks = {name: int(np.sum(slots[name].active)) for name in parts.adapters}
    active = sum(
        ranks[name] * (a.A.shape[-2] + a.B.shape[-1] + 1) for name, a in parts.adapters.items()
    )
    return TrainableReport(
        active=active,
        buffer=_count(parts.adapters),
        head=_count(parts.head),
        base=_count(parts.base),
        ranks=ranks,
    )


def _count(tree: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

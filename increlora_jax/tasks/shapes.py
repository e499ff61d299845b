"""Choice of few shapes for the batches of a run, by the lengths of its own examples.

Each shape costs the compilation of its programs, and padding costs time in every step.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from increlora_jax.tasks.batching import choose_bucket
from increlora_jax.tasks.packing import pack_lengths

WORTHWHILE = 0.85
"""Packing is chosen if its batches have at most this share of the padded batches' positions."""

_TOKENS_TO_ATTENTION = 4096
"""Length from which attention costs as much as a layer's products, for a width of about 700."""


class Packed(NamedTuple):
    """Shape of a packed batch.

    Attributes:
        rows: Enough for every batch that was looked at.
        length: Tokens of a row.
    """

    rows: int
    length: int


def choose_buckets(
    lengths: Sequence[int], buckets: Sequence[int], program_cost: float
) -> tuple[int, ...]:
    """Choose the lengths that batches are padded to.

    Buckets are left out one by one, as long as the sum over batches of their padded length, plus
    `program_cost` · longest for each bucket, falls.

    Args:
        lengths: The longest example of each batch.
        buckets: The lengths to choose from, ascending.
        program_cost: The cost of another shape, in batches of the longest length.

    Returns:
        The chosen buckets, and all that are longer than every batch.
    """
    counts = Counter(choose_bucket(length, tuple(buckets)) for length in lengths)
    chosen = tuple(sorted(counts))
    longest = chosen[-1]

    def cost(some: tuple[int, ...]) -> float:
        padded = sum(count * choose_bucket(length, some) for length, count in counts.items())
        return padded + program_cost * longest * len(some)

    while len(chosen) > 1:
        fewer = min((_without(chosen, bucket) for bucket in chosen[:-1]), key=cost)
        if cost(fewer) > cost(chosen):
            break
        chosen = fewer
    return (*chosen, *(bucket for bucket in buckets if bucket > longest))


def choose_packed(batches: Sequence[np.ndarray], longest: int, buckets: Sequence[int]) -> Packed:
    """Choose the shape of packed batches that costs least; attention grows with the length.

    Args:
        batches: The lengths of the examples of each batch.
        longest: The longest example of all batches, looked at or not.
        buckets: The lengths of rows to choose from.
    """
    shapes = [
        Packed(max(len(pack_lengths(lengths, length)) for lengths in batches), length)
        for length in buckets
        if length >= longest
    ]
    return min(shapes, key=lambda s: s.rows * s.length * (1 + s.length / _TOKENS_TO_ATTENTION))


def is_worthwhile(shape: Packed, padded_places: Iterable[int]) -> bool:
    """Return whether packed batches have clearly fewer positions than padded ones on average."""
    return shape.rows * shape.length <= WORTHWHILE * float(np.mean(list(padded_places)))


def _without(chosen: tuple[int, ...], bucket: int) -> tuple[int, ...]:
    return tuple(other for other in chosen if other != bucket)

"""Choice of few shapes for the batches of a run, by the lengths of its own examples.

Each shape costs the compilation of its programs, and padding costs time in every step.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from increlora_jax.tasks.batching import choose_bucket
from increlora_jax.tasks.packing import Packed, pack_lengths

WORTHWHILE = 0.85
"""Packing is chosen if its batches have at most this share of the padded batches' positions."""

_TOKENS_TO_ATTENTION = 4096
"""Length from which attention costs as much as a layer's products, for a width of about 700."""


def choose_buckets(
    lengths: Sequence[int], buckets: Sequence[int], shape_cost: float
) -> tuple[int, ...]:
    """Choose the lengths that batches are padded to, or the numbers of rows of packed ones.

    Buckets are left out one by one, as long as the sum of all padded lengths, plus `shape_cost` for
    each bucket, falls.

    Args:
        lengths: The length that each batch needs.
        buckets: The lengths to choose from, ascending.
        shape_cost: The cost of another shape, in lengths.

    Returns:
        The chosen buckets, and all that are longer than every batch.
    """
    counts = Counter(choose_bucket(length, tuple(buckets)) for length in lengths)
    chosen = tuple(sorted(counts))
    longest = chosen[-1]

    def cost(some: tuple[int, ...]) -> float:
        padded = sum(count * choose_bucket(length, some) for length, count in counts.items())
        return padded + shape_cost * len(some)

    while len(chosen) > 1:
        fewer = min((_without(chosen, bucket) for bucket in chosen[:-1]), key=cost)
        if cost(fewer) > cost(chosen):
            break
        chosen = fewer
    return (*chosen, *(bucket for bucket in buckets if bucket > longest))


def choose_packed(
    groups: Sequence[Sequence[np.ndarray]],
    longest: int,
    buckets: Sequence[int],
    shape_cost: float,
) -> Packed:
    """Choose the shapes of packed batches that cost least; attention grows with the length.

    Args:
        groups: The lengths of the examples of each batch; the batches of a group are of one shape.
        longest: The longest example of all batches, looked at or not.
        buckets: The lengths of rows to choose from.
        shape_cost: The cost of another shape, in positions of one batch of each group.
    """

    def cost(packed: Packed) -> float:
        places = packed.places + shape_cost / len(groups) * len(packed.rows)
        return places * (1 + packed.length / _TOKENS_TO_ATTENTION)

    fitting = (length for length in buckets if length >= longest)
    return min((_pack_all(groups, length, shape_cost) for length in fitting), key=cost)


def _pack_all(groups: Sequence[Sequence[np.ndarray]], length: int, shape_cost: float) -> Packed:
    needed = [max(len(pack_lengths(batch, length)) for batch in group) for group in groups]
    rows = choose_buckets(needed, _row_counts(max(needed)), shape_cost / length)
    places = length * np.mean([choose_bucket(count, rows) for count in needed])
    return Packed(rows, length, float(places))


def _row_counts(most: int) -> list[int]:
    """List 1 to 8, 10, 12, 14, 16, 20, … up to one that is enough: other seeds need the same."""
    counts = [1, 2, 3, 4]
    while counts[-1] < most:
        counts += [count * counts[-1] // 4 for count in (5, 6, 7, 8)]
    return [count for before, count in zip([0, *counts], counts, strict=False) if before < most]


def is_worthwhile(packed: Packed, padded_places: Iterable[int]) -> bool:
    """Return whether packed batches have clearly fewer positions than padded ones on average."""
    return packed.places <= WORTHWHILE * float(np.mean(list(padded_places)))


def _without(chosen: tuple[int, ...], bucket: int) -> tuple[int, ...]:
    return tuple(other for other in chosen if other != bucket)

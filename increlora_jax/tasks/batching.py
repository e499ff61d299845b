"""Batches of few static shapes, each a pure function of (seed, step), with no state to save.

A batch depends only on seed and step. A resumed run and every host of a distributed run thus see
the same batches as an uninterrupted run.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.tasks.kind import Batch, Encoded, Ragged

Lengths = dict[str, int]
"""Padded length of each ragged field, by name."""


def length_buckets(max_length: int) -> tuple[int, ...]:
    """List the lengths that batches are padded to: 16, 32, 48, 64, 96, 128, … up to `max_length`.

    Above 32 each doubling has a step half-way, so that at most a third of a batch's length is
    padding. Each length in use costs one compilation of the training step.
    """
    powers = [2**k for k in range(4, max_length.bit_length())]
    halfway = [3 * power // 2 for power in powers if power >= 32]
    return (*sorted(length for length in powers + halfway if length < max_length), max_length)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Count the batches of n examples, including a last partial one."""
    return -(-n // batch_size)


def batch_lengths(
    encoded: Encoded, *, seed: int, step: int, batch_size: int, buckets: tuple[int, ...]
) -> Lengths:
    """Choose the bucket of each ragged field for a step's training batch.

    Args:
        encoded: The rows.
        seed: Seed of the data order.
        step: The step, from 0 over all epochs.
        batch_size: Examples in a batch.
        buckets: The lengths to choose from.
    """
    chosen = choose_examples(encoded, seed=seed, step=step, batch_size=batch_size)
    return choose_lengths(encoded, chosen, buckets)


def choose_lengths(encoded: Encoded, rows: np.ndarray, buckets: tuple[int, ...]) -> Lengths:
    """Choose for each ragged field the shortest bucket that holds these rows."""
    return {
        name: choose_bucket(int(field.lengths[rows].max()), buckets)
        for name, field in encoded.ragged.items()
    }


def batch_at(
    encoded: Encoded,
    *,
    seed: int,
    step: int,
    batch_size: int,
    lengths: Lengths,
    rows: np.ndarray | None = None,
) -> Batch:
    """Build the training batch of a step.

    Every epoch visits each row of `encoded` once, in an order drawn from (seed, epoch).

    Args:
        encoded: The rows.
        seed: Seed of the data order.
        step: The step, from 0 over all epochs.
        batch_size: Rows of the batch.
        lengths: The padded length of each ragged field.
        rows: The rows of the batch to build, ascending; default: all.

    Returns:
        The batch; see `collate`.
    """
    chosen = choose_examples(encoded, seed=seed, step=step, batch_size=batch_size)
    return collate(encoded, chosen, batch_size=batch_size, lengths=lengths, rows=rows)


def evaluation_batches(
    encoded: Encoded, *, batch_size: int, buckets: tuple[int, ...], rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield (indices, batch) over every row once, short rows first, which are cheap.

    Args:
        encoded: The rows.
        batch_size: Rows of a batch.
        buckets: The lengths to choose from.
        rows: The rows of each batch to build, ascending; default: all.

    Yields:
        The indices in the split and a batch as from `collate`. Its first `len(indices)` rows belong
            to the indices: `out[indices] = predictions[: len(indices)]` restores the split's order.
    """
    order = np.argsort(encoded.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        lengths = choose_lengths(encoded, indices, buckets)
        yield indices, collate(encoded, indices, batch_size=batch_size, lengths=lengths, rows=rows)


def choose_examples(encoded: Encoded, *, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Return the indices of a step's training examples; an epoch's last batch may be partial.

    Args:
        encoded: The rows.
        seed: Seed of the data order.
        step: The step, from 0 over all epochs.
        batch_size: Examples in a batch.
    """
    epoch, position = divmod(step, steps_per_epoch(len(encoded), batch_size))
    order = _shuffle(len(encoded), seed, epoch)
    return order[position * batch_size : (position + 1) * batch_size]


@lru_cache(maxsize=32)  # holds the present epoch of each run that trains
def _shuffle(n: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(n)
    order.flags.writeable = False  # all callers share the cached array
    return order


def collate(
    encoded: Encoded,
    chosen: np.ndarray,
    *,
    batch_size: int,
    lengths: Lengths,
    rows: np.ndarray | None = None,
) -> Batch:
    """Build a batch of the chosen rows, padded to `lengths`.

    Args:
        encoded: The rows.
        chosen: The indices of the rows: at least one, at most `batch_size`.
        batch_size: Rows of the batch; rows beyond `chosen` repeat its first one with weight 0.
        lengths: The padded length of each ragged field.
        rows: The rows of the batch to build, ascending; default: all.

    Returns:
        Every ragged field [rows, length], every fixed field [rows, …], and `weight` float32 [rows].
    """
    rows = np.arange(batch_size) if rows is None else rows
    is_real = rows < len(chosen)
    own = chosen[np.where(is_real, rows, 0)]
    batch = {name: _pad(field, own, lengths[name]) for name, field in encoded.ragged.items()}
    batch |= {name: field[own] for name, field in encoded.fixed.items()}
    return batch | {"weight": is_real.astype(np.float32)}


def _pad(field: Ragged, rows: np.ndarray, length: int) -> np.ndarray:
    places = np.arange(length)
    is_own = places < field.lengths[rows, None]
    padded = np.full(is_own.shape, field.fill, field.values.dtype)
    padded[is_own] = field.values[(field.offsets[rows, None] + places)[is_own]]
    return padded


def choose_bucket(longest: int, buckets: tuple[int, ...]) -> int:
    """Choose the shortest bucket that holds an example.

    Raises:
        InputError: If no bucket holds it.
    """
    holding = [bucket for bucket in buckets if bucket >= longest]
    if not holding:
        raise InputError(
            f"an example has {longest} tokens, and the longest length bucket is {max(buckets)}. "
            "Make the last bucket as long as --max-seq-length"
        )
    return min(holding)

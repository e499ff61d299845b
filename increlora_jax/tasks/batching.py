"""Batches of few static shapes, each a pure function of (seed, step): nothing to save, or resume.

The batch of a step depends on the seed and the step alone, so a resumed run, and every host of a
distributed one, sees the batch that it would have seen.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.tasks.encoding import Encoded

Batch = dict[str, np.ndarray]


def length_buckets(max_length: int) -> tuple[int, ...]:
    """List the lengths batches are padded to: 16, 32, 48, 64, 96, 128, … and `max_length` at last.

    Beyond 32 every doubling has a step half-way, so that at most a third of a batch's length is
    there for nothing. Each bucket met is one compilation of the training step.
    """
    powers = [2**k for k in range(4, max_length.bit_length())]
    halfway = [3 * power // 2 for power in powers if power >= 32]
    return (*sorted(length for length in powers + halfway if length < max_length), max_length)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Count the batches that hold n examples, the last of them perhaps in part."""
    return -(-n // batch_size)


def batch_length(
    encoded: Encoded, *, seed: int, step: int, batch_size: int, buckets: tuple[int, ...]
) -> int:
    """The bucket of a step's training batch."""
    chosen = choose_examples(encoded, seed=seed, step=step, batch_size=batch_size)
    return choose_bucket(int(encoded.lengths[chosen].max()), buckets)


def batch_at(
    encoded: Encoded,
    *,
    seed: int,
    step: int,
    batch_size: int,
    buckets: tuple[int, ...],
    rows: np.ndarray | None = None,
) -> Batch:
    """Build the training batch of a step, counted from 0 over all epochs.

    Every epoch visits each example once, in an order drawn from (seed, epoch). The batch has
    `input_ids`, `attention_mask` and `token_type_ids`, int32 [batch_size, length] with the smallest
    of the buckets that holds its longest example; `labels` [batch_size], int32 or float32; and
    `weight` float32 [batch_size], which is 0 in the rows that fill up the last batch of an epoch.
    A host that wants only some `rows` of it, ascending, gets those; the length is of them all.
    """
    chosen = choose_examples(encoded, seed=seed, step=step, batch_size=batch_size)
    return _pad_batch(encoded, chosen, batch_size, buckets, rows)


def evaluation_batches(
    encoded: Encoded, *, batch_size: int, buckets: tuple[int, ...], rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield (indices, batch) over every example once, short ones first, since those are cheap.

    The batch is as in `batch_at`; the first `len(indices)` of all rows are the examples of those
    indices, so `out[indices] = logits[: len(indices)]` brings predictions back into the order of
    the split.
    """
    order = np.argsort(encoded.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, _pad_batch(encoded, indices, batch_size, buckets, rows)


def choose_examples(encoded: Encoded, *, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Tell which examples a step's training batch has; fewer than its size at an epoch's end."""
    epoch, position = divmod(step, steps_per_epoch(len(encoded), batch_size))
    order = _shuffle(len(encoded), seed, epoch)
    return order[position * batch_size : (position + 1) * batch_size]


@lru_cache(maxsize=32)  # of each run that trains, the epoch it is in
def _shuffle(n: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(n)
    order.flags.writeable = False  # the cache hands the same array to everyone
    return order


def _pad_batch(
    encoded: Encoded,
    indices: np.ndarray,
    batch_size: int,
    buckets: tuple[int, ...],
    rows: np.ndarray | None,
) -> Batch:
    rows = np.arange(batch_size) if rows is None else rows
    length = choose_bucket(int(encoded.lengths[indices].max()), buckets)
    batch = {
        "input_ids": np.full((len(rows), length), encoded.pad_id, np.int32),
        "attention_mask": np.zeros((len(rows), length), np.int32),
        "token_type_ids": np.zeros((len(rows), length), np.int32),
        "labels": np.zeros(len(rows), encoded.labels.dtype),
        "weight": np.zeros(len(rows), np.float32),
    }
    own = indices[rows[rows < len(indices)]]
    places = np.arange(length)
    is_token = places < encoded.lengths[own, None]
    tokens = (encoded.offsets[own, None] + places)[is_token]
    batch["input_ids"][: len(own)][is_token] = encoded.token_ids[tokens]
    batch["attention_mask"][: len(own)][is_token] = 1
    batch["token_type_ids"][: len(own)][is_token] = encoded.token_types[tokens]
    batch["labels"][: len(own)] = encoded.labels[own]
    batch["weight"][: len(own)] = 1.0
    # A row that attends to nothing is 0/0 in a softmax or a mean, and 0 times NaN is still NaN.
    batch["attention_mask"][len(own) :, 0] = 1
    return batch


def choose_bucket(longest: int, buckets: tuple[int, ...]) -> int:
    """Choose the shortest bucket that holds an example.

    Raises:
      InputError: none does.
    """
    holding = [bucket for bucket in buckets if bucket >= longest]
    if not holding:
        raise InputError(
            f"an example has {longest} tokens, and the longest length bucket is {max(buckets)}; "
            "make the last bucket as long as --max-seq-length"
        )
    return min(holding)

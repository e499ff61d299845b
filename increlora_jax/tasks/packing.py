"""Training batches whose examples share rows: less padding, the same loss.

As in `batching`, each batch is a pure function of (seed, step), with the same examples.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from increlora_jax.tasks.kind import Batch, Encoded


class Packed(NamedTuple):
    """Shapes of packed batches.

    Attributes:
        rows: Numbers of rows to choose from, ascending; the last is enough for every batch that was
            looked at.
        length: Tokens of a row.
        places: Positions of a batch on average.
    """

    rows: tuple[int, ...]
    length: int
    places: float

    def shape(self, needed: int) -> tuple[int, int]:
        """Choose the number of rows of a batch that needs so many; return it and their length."""
        return min((rows for rows in self.rows if rows >= needed), default=needed), self.length


def pack_lengths(lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """Spread examples over rows, the longest first, each into the first row with room.

    Returns:
        The examples of each row. First-fit decreasing needs at most 11/9 of the fewest rows, plus
            one.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for example in np.argsort(-lengths, kind="stable"):
        length = int(lengths[example])
        place = next((p for p, free in enumerate(room) if free >= length), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(row_length)
        rows[place].append(int(example))
        room[place] -= length
    return rows


def pack_batch(
    encoded: Encoded,
    examples: np.ndarray,
    rows: Sequence[Sequence[int]],
    *,
    batch_size: int,
    shape: tuple[int, int],
) -> Batch:
    """Build a batch of `shape` [rows, length] with examples packed into rows.

    Args:
        encoded: The split.
        examples: The indices of the examples.
        rows: The examples of each row, by their place in `examples`.
        batch_size: The largest number of examples.
        shape: The number of rows and their length.

    Returns:
        The ragged fields int32 [rows, length]; the mask numbers a row's examples from 1 on. For
            every example also the fixed fields and `weight` as from `batching.collate`, and
            `firsts` int32 [batch_size], the place of its first token over all rows.
    """
    fields = encoded.ragged
    batch: Batch = {name: np.full(shape, field.fill, np.int32) for name, field in fields.items()}
    batch["firsts"] = np.zeros(batch_size, np.int32)
    batch["weight"] = (np.arange(batch_size) < len(examples)).astype(np.float32)
    for name, values in encoded.fixed.items():
        batch[name] = np.zeros((batch_size, *values.shape[1:]), values.dtype)
        batch[name][: len(examples)] = values[examples]
    for row, members in enumerate(rows):
        begin = 0
        for number, place in enumerate(members, start=1):
            end = begin + int(encoded.lengths[examples[place]])
            for name, field in fields.items():
                tokens = slice(*field.offsets[examples[place] : examples[place] + 2])
                batch[name][row, begin:end] = field.values[tokens]
            batch["attention_mask"][row, begin:end] = number
            batch["firsts"][place] = row * shape[1] + begin
            begin = end
    return batch


def packed_evaluation(
    encoded: Encoded, *, batch_size: int, packed: Packed, pack: Callable[..., Batch]
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield (indices, packed batch) over every example once, in the order of the split.

    Args:
        encoded: The split.
        batch_size: Examples of a batch.
        packed: The shapes to choose from.
        pack: Builds a batch, as `pack_batch`.
    """
    for start in range(0, len(encoded), batch_size):
        examples = np.arange(start, min(start + batch_size, len(encoded)))
        rows = pack_lengths(encoded.lengths[examples], packed.length)
        shape = packed.shape(len(rows))
        yield examples, pack(encoded, examples, rows, batch_size=batch_size, shape=shape)

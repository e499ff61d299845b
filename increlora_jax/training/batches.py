"""The training batches of a run, or of several runs that train together."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from increlora_jax.tasks.batching import (
    Lengths,
    batch_at,
    batch_lengths,
    choose_bucket,
    choose_examples,
)
from increlora_jax.tasks.kind import Batch, Encoded
from increlora_jax.tasks.packing import Packed, pack_lengths
from increlora_jax.tasks.shapes import choose_buckets, choose_packed, is_worthwhile

PROGRAM_COST = {"cpu": 80_000, "gpu": 12_000_000, "tpu": 12_000_000}
"""Positions that are computed in the time that the compilation of a step's two programs takes.

For MiniLM-L6 on two cores: 2,000 positions a second, 18 s to compile a program.
"""

MOST_LOOKED_AT = 300_000
"""Examples of a run by which shapes are chosen; a later batch may still need another shape."""


@dataclass(frozen=True, eq=False)
class Batches:
    """Maker of the batch of a step, from the rows of this process.

    The batches of several runs are stacked. With accumulation, an axis of micro-batches is in front
    of the rows. The batches of all runs in a block of steps have one shape.

    Attributes:
        encoded: the training split.
        seeds: of the data order of each run.
        batch_size: examples of a micro-batch.
        accumulation: micro-batches of an optimizer step.
        buckets: lengths that batches may be padded to; few of them are chosen.
        own_rows: of a micro-batch, ascending.
        block: the steps, one given among them, whose batches are of one shape.
        steps: of the run; its batches decide which shapes are chosen.
        pack: builds batches by sequence packing (`Kind.pack`); None for padded batches.
        is_free: whether batches are packed only if that is worthwhile; default: False.
        program_cost: in positions; see `PROGRAM_COST`.
    """

    encoded: Encoded
    seeds: Sequence[int]
    batch_size: int
    accumulation: int
    buckets: tuple[int, ...]
    own_rows: np.ndarray
    block: Callable[[int], range]
    steps: int
    pack: Callable[..., Batch] | None = None
    is_free: bool = False
    program_cost: float = PROGRAM_COST["cpu"]

    def __call__(self, step: int) -> Batch:
        """Make the batch of an optimizer step."""
        packed = self.packed
        each = self._pack_each(step, packed) if packed else self._pad_each(step)
        axes = [count for count in (len(self.seeds), self.accumulation) if count > 1]
        return {
            name: np.concatenate([b[name] for b in each]).reshape(*axes, -1, *array.shape[1:])
            for name, array in each[0].items()
        }

    @cached_property
    def packed(self) -> Packed | None:
        """Shapes of packed batches; None if batches are padded."""
        if self.pack is None:
            return None
        lengths = self.encoded.lengths
        groups = [
            [lengths[part] for step in block for part in self._micro_batches(step) if len(part)]
            for block in self._looked_at
        ]
        packed = choose_packed(groups, int(lengths.max()), self.buckets, self._shape_cost)
        padded = (choose_bucket(length, self.padded_lengths) for length in self._longest)
        places = (self.batch_size * length for length in padded)
        return packed if not self.is_free or is_worthwhile(packed, places) else None

    @cached_property
    def padded_lengths(self) -> tuple[int, ...]:
        """Lengths that batches are padded to."""
        return choose_buckets(self._longest, self.buckets, self._shape_cost / self.batch_size)

    def steps_by_shape(self) -> list[list[int]]:
        """List the steps, of those looked at, of each shape; shapes are in order of need."""
        if self.packed and len(self.packed.rows) == 1:
            return [[step for block in self._looked_at for step in block]]
        found: dict[Hashable, list[int]] = {}
        for block in self._looked_at:
            found.setdefault(self._shape(block), []).extend(block)
        return list(found.values())

    @property
    def _shape_cost(self) -> float:
        """Cost of another shape, in positions of a run's micro-batch in each block looked at."""
        batches = self.steps * len(self.seeds) * self.accumulation
        return self.program_cost * len(self._looked_at) / batches

    @cached_property
    def _longest(self) -> list[int]:
        """Longest example of each block that is looked at."""
        lengths = self.encoded.lengths
        return [
            max(int(lengths[e].max()) for step in block for e in self._examples(step))
            for block in self._looked_at
        ]

    @cached_property
    def _looked_at(self) -> list[range]:
        """Blocks by whose batches shapes are chosen."""
        count = min(self.steps, -(-MOST_LOOKED_AT // (self._size * len(self.seeds))))
        return list(dict.fromkeys(self.block(step) for step in range(count)))

    @property
    def _size(self) -> int:
        return self.batch_size * self.accumulation

    def _pad_each(self, step: int) -> list[Batch]:
        """Return a padded batch for each run, of all its micro-batches."""
        lengths = self._lengths(self.block(step))
        begins = self.batch_size * np.arange(self.accumulation)
        rows = (begins[:, None] + self.own_rows).ravel()
        return [
            batch_at(
                self.encoded,
                seed=seed,
                step=step,
                batch_size=self._size,
                lengths=lengths,
                rows=rows,
            )
            for seed in self.seeds
        ]

    def _shape(self, block: range) -> Hashable:
        """Return what the batches of a block are padded to."""
        if self.packed is None:
            return tuple(sorted(self._lengths(block).items()))
        return self.packed.shape(self._needed_rows(block, self.packed.length))

    def _lengths(self, block: range) -> Lengths:
        """Choose the lengths that every batch of a block fits."""
        each = [
            batch_lengths(
                self.encoded,
                seed=seed,
                step=at,
                batch_size=self._size,
                buckets=self.padded_lengths,
            )
            for at in block
            for seed in self.seeds
        ]
        return {name: max(lengths[name] for lengths in each) for name in each[0]}

    def _pack_each(self, step: int, packed: Packed) -> list[Batch]:
        """Return a packed batch for each run and micro-batch."""
        assert self.pack is not None
        shape = packed.shape(self._needed_rows(self.block(step), packed.length))
        return [
            self.pack(self.encoded, examples, rows, batch_size=self.batch_size, shape=shape)
            for examples, rows in zip(
                self._micro_batches(step), self._spread(step, packed.length), strict=True
            )
        ]

    def _needed_rows(self, block: range, length: int) -> int:
        """Return the number of rows that every batch of a block fits."""
        return max(len(rows) for step in block for rows in self._spread(step, length))

    def _spread(self, step: int, length: int) -> list[list[list[int]]]:
        """Return the examples of each row, for every micro-batch of every run."""
        parts = self._micro_batches(step)
        return [pack_lengths(self.encoded.lengths[examples], length) for examples in parts]

    def _micro_batches(self, step: int) -> list[np.ndarray]:
        """Return the examples of every micro-batch of every run."""
        begins = range(0, self._size, self.batch_size)
        return [
            examples[at : at + self.batch_size]
            for examples in self._examples(step)
            for at in begins
        ]

    def _examples(self, step: int) -> list[np.ndarray]:
        """Return the examples of every run."""
        return [
            choose_examples(self.encoded, seed=seed, step=step, batch_size=self._size)
            for seed in self.seeds
        ]


Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""The names and shapes of a batch's arrays, sorted."""


def shapes_of(batch: Batch) -> Shapes:
    """Return the names and shapes of a batch's arrays: the key of a compiled program."""
    return tuple(sorted((name, array.shape) for name, array in batch.items()))


def describe_batch(batch: Batch) -> str:
    """Describe the shape of a batch's largest array: rows × tokens."""
    rows, length = max(batch.values(), key=lambda array: array.size).shape[-2:]
    return f"{rows} × {length} tokens"

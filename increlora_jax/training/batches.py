"""The training batches of a run, or of several runs that train together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from increlora_jax.tasks.batching import (
    Lengths,
    batch_at,
    batch_lengths,
    choose_bucket,
    choose_examples,
)
from increlora_jax.tasks.kind import Batch, Encoded
from increlora_jax.tasks.packing import count_rows, pack_lengths


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
        buckets: the lengths that batches are padded to.
        own_rows: of a micro-batch, ascending.
        block: the steps, one given among them, whose batches are of one shape.
        pack: builds batches by sequence packing (`Kind.pack`); None for padded batches.
    """

    encoded: Encoded
    seeds: Sequence[int]
    batch_size: int
    accumulation: int
    buckets: tuple[int, ...]
    own_rows: np.ndarray
    block: Callable[[int], range]
    pack: Callable[..., Batch] | None = None

    def __call__(self, step: int) -> Batch:
        """Make the batch of an optimizer step."""
        each = self._pack_each(step, self.pack) if self.pack else self._pad_each(step)
        axes = [count for count in (len(self.seeds), self.accumulation) if count > 1]
        return {
            name: np.concatenate([b[name] for b in each]).reshape(*axes, -1, *array.shape[1:])
            for name, array in each[0].items()
        }

    @property
    def _size(self) -> int:
        return self.batch_size * self.accumulation

    def _pad_each(self, step: int) -> list[Batch]:
        """Return a padded batch for each run, of all its micro-batches."""
        lengths = self._lengths(step)
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

    def _lengths(self, step: int) -> Lengths:
        """Choose the lengths that every batch of the step's block fits."""
        each = [
            batch_lengths(
                self.encoded, seed=seed, step=at, batch_size=self._size, buckets=self.buckets
            )
            for at in self.block(step)
            for seed in self.seeds
        ]
        return {name: max(lengths[name] for lengths in each) for name in each[0]}

    def _pack_each(self, step: int, pack: Callable[..., Batch]) -> list[Batch]:
        """Return a packed batch for each run and micro-batch."""
        length = choose_bucket(int(self.encoded.lengths.max()), self.buckets)
        parts = {at: self._micro_batches(at) for at in self.block(step)}
        spread = {
            at: [pack_lengths(self.encoded.lengths[examples], length) for examples in each]
            for at, each in parts.items()
        }
        needed = max(len(rows) for each in spread.values() for rows in each)
        shape = (count_rows(needed, self.batch_size), length)
        return [
            pack(self.encoded, examples, rows, batch_size=self.batch_size, shape=shape)
            for examples, rows in zip(parts[step], spread[step], strict=True)
        ]

    def _micro_batches(self, step: int) -> list[np.ndarray]:
        """Return the examples of every micro-batch of every run."""
        chosen = (
            choose_examples(self.encoded, seed=seed, step=step, batch_size=self._size)
            for seed in self.seeds
        )
        begins = range(0, self._size, self.batch_size)
        return [examples[at : at + self.batch_size] for examples in chosen for at in begins]


Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""The names and shapes of a batch's arrays, sorted."""


def shapes_of(batch: Batch) -> Shapes:
    """Return the names and shapes of a batch's arrays: the key of a compiled program."""
    return tuple(sorted((name, array.shape) for name, array in batch.items()))


def describe_batch(batch: Batch) -> str:
    """Describe the shape of a batch's largest array: rows × tokens."""
    rows, length = max(batch.values(), key=lambda array: array.size).shape[-2:]
    return f"{rows} × {length} tokens"

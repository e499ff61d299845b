"""The predictions of a model on whole splits, and their metrics."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from math import ceil

import numpy as np

from increlora_jax.runtime.console import counted
from increlora_jax.runtime.preemption import Stop
from increlora_jax.tasks.batching import choose_bucket, evaluation_batches
from increlora_jax.tasks.kind import Batch, Encoded, Kind, Metrics, Predictions, TaskData
from increlora_jax.tasks.packing import packed_evaluation
from increlora_jax.tasks.shapes import choose_buckets, choose_packed, is_worthwhile
from increlora_jax.training.batches import PROGRAM_COST
from increlora_jax.training.forward import Forward
from increlora_jax.training.programs import Background
from increlora_jax.training.sharding import Layout
from increlora_jax.training.state import TrainState
from increlora_jax.training.step import Base, Trainer
from increlora_jax.training.together import over_members, split


class Evaluator:
    """Scorer of states on the dev splits of a task, with one program for each shape of batches."""

    def __init__(
        self,
        trainer: Trainer,
        layout: Layout,
        data: TaskData,
        encoded: Mapping[str, Encoded],
        *,
        batch_size: int,
        buckets: tuple[int, ...],
        pack: Callable[..., Batch] | None = None,
        is_free: bool = False,
        program_cost: float = PROGRAM_COST["cpu"],
    ):
        self._data = data
        self._encoded = encoded
        # No batch has more rows than the largest split, up to a multiple of the devices.
        largest = max(map(len, encoded.values()), default=1)
        batch_size = min(batch_size, ceil(largest / layout.blocks) * layout.blocks)
        self._batches_of = choose_batches(
            encoded.values(),
            batch_size,
            buckets,
            layout.own_rows(batch_size),
            pack,
            is_free=is_free,
            program_cost=program_cost,
        )

        self._forward = Forward(predictor(trainer, layout, data.kind), layout)

    @property
    def kind(self) -> Kind:
        """The kind of the task that is evaluated."""
        return self._data.kind

    def metrics(self, state: TrainState, base: Base, stop: Stop | None = None) -> Metrics:
        """Compute every metric of the task on its dev splits, of a single run's state.

        Raises:
            Preempted: a stop was requested; there are no metrics.
        """
        (metrics,) = self.metrics_of_each(state, base, stop)
        return metrics

    def metrics_of_each(
        self, state: TrainState, base: Base, stop: Stop | None = None
    ) -> list[Metrics]:
        """Compute the metrics of every run that trains together."""
        return [
            self._data.kind.score(each, self._encoded, self._data.dev)
            for each in self.predictions(state, base, stop)
        ]

    def predictions(
        self, state: TrainState, base: Base, stop: Stop | None = None
    ) -> list[dict[str, Predictions]]:
        """Predict every row of every split, in the order of the split; one dictionary a run."""
        splits = {}
        for name, encoded in self._encoded.items():
            with counted("evaluating", len(encoded), f"{name} examples") as advance:
                splits[name] = self._forward.over(
                    self._batches_of(encoded), len(encoded), (state, base), stop or Stop(), advance
                )
        return split(splits, state, axis=1)

    def compile_ahead(self, state: TrainState, base: Base, background: Background) -> None:
        """Compile the program of the first batch in the background."""
        if not background.is_used:
            return
        for encoded in self._encoded.values():
            for _, batch in self._batches_of(encoded):
                self._forward.compile_ahead(batch, (state, base), background)
                return


def predictor(
    trainer: Trainer, layout: Layout, kind: Kind
) -> Callable[[tuple[TrainState, Base], Batch], Predictions]:
    """Return the function ((state, base), batch) → predictions, for one run or several."""

    def predict(model: tuple[TrainState, Base], batch: Batch) -> Predictions:
        state, base = model

        def of_one(state: TrainState) -> Predictions:
            state = state._replace(params=layout.gather(state.params))
            whole = layout.gather(base)
            return trainer.predict(state, whole, lambda model: kind.predict(model, batch))

        return over_members(state, of_one, out_axes=1)(state)

    return predict


def choose_batches(
    splits: Collection[Encoded],
    batch_size: int,
    buckets: tuple[int, ...],
    rows: np.ndarray,
    pack: Callable[..., Batch] | None,
    *,
    is_free: bool,
    program_cost: float,
) -> Callable[[Encoded], Iterator[tuple[np.ndarray, Batch]]]:
    """Choose the shapes of evaluation batches; return the function that makes those of a split.

    Args:
        splits: all that are evaluated.
        batch_size: examples of a batch.
        buckets: lengths to choose from.
        rows: of each padded batch to make; see `evaluation_batches`.
        pack: builds batches by sequence packing; None for padded batches.
        is_free: whether batches are packed only if that is worthwhile.
        program_cost: in positions; a forward pass and its program both take a third of a step's.
    """
    padded = [part for split in splits for part in _cut(np.sort(split.lengths), batch_size)]
    longest = [int(part.max()) for part in padded] or [1]
    chosen = choose_buckets(longest, buckets, program_cost / batch_size)
    if pack is not None and padded:
        mixed = [[part] for split in splits for part in _cut(split.lengths, batch_size)]
        packed = choose_packed(mixed, max(longest), buckets, program_cost)
        places = (batch_size * choose_bucket(length, chosen) for length in longest)
        if not is_free or is_worthwhile(packed, places):
            return partial(packed_evaluation, batch_size=batch_size, packed=packed, pack=pack)
    return partial(evaluation_batches, batch_size=batch_size, buckets=chosen, rows=rows)


def _cut(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    return [lengths[start : start + size] for start in range(0, len(lengths), size)]

"""The logits of a whole split, and the metrics made of them."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import ceil, prod
from typing import Any

import jax
import numpy as np

from increlora_jax.runtime.console import announced, counted
from increlora_jax.runtime.preemption import Stop
from increlora_jax.tasks.base import Task, TaskData
from increlora_jax.tasks.batching import evaluation_batches
from increlora_jax.tasks.encoding import Encoded
from increlora_jax.tasks.metrics import score_splits
from increlora_jax.training.loss import call_model
from increlora_jax.training.sharding import Layout
from increlora_jax.training.state import TrainState, over_members
from increlora_jax.training.step import Base, Trainer

IN_FLIGHT = 4
"""Calls whose logits are not yet read."""


class Evaluator:
    """Scores states on the development splits of a task; compiled once a length bucket."""

    def __init__(
        self,
        trainer: Trainer,
        layout: Layout,
        data: TaskData,
        encoded: Mapping[str, Encoded],
        *,
        batch_size: int,
        buckets: tuple[int, ...],
    ):
        self._data = data
        self._encoded = encoded
        # No batch has more rows than the largest split, up to what the mesh divides them by.
        largest = max(map(len, encoded.values()), default=1)
        batch_size = min(batch_size, ceil(largest / layout.blocks) * layout.blocks)
        rows = layout.own_rows(batch_size)
        self._batching: Any = {"batch_size": batch_size, "buckets": buckets, "rows": rows}
        self._layout = layout

        @partial(jax.jit, out_shardings=layout.everywhere)
        def logits(state: TrainState, base: Base, batch: Any) -> jax.Array:
            def of_one(state: TrainState) -> jax.Array:
                state = state._replace(params=layout.gather(state.params))
                whole = layout.gather(base)
                return trainer.predict(state, whole, lambda model: call_model(model, batch))

            return over_members(state, of_one)(state)

        self._logits: Any = logits
        self._programs: dict[tuple[int, ...], Callable[..., jax.Array]] = {}

    @property
    def task(self) -> Task:
        """What is evaluated."""
        return self._data.task

    def metrics(self, state: TrainState, base: Base, stop: Stop | None = None) -> dict[str, float]:
        """Every metric of the task on every development split, of a single run's state.

        Raises:
          Preempted: `stop` was asked for; there are no metrics then.
        """
        (metrics,) = self.metrics_of_each(state, base, stop)
        return metrics

    def metrics_of_each(
        self, state: TrainState, base: Base, stop: Stop | None = None
    ) -> list[dict[str, float]]:
        """The same of every run that trains together."""
        splits = self.logits(state, base, stop)
        own = (
            {split: logits[index] for split, logits in splits.items()}
            for index in range(prod(state.members))
        )
        return [score_splits(self.task, each, self._data.dev) for each in own]

    def logits(
        self, state: TrainState, base: Base, stop: Stop | None = None
    ) -> dict[str, np.ndarray]:
        """Compute the logits [runs, examples, labels] of every split, in the split's order."""
        splits = {}
        for split, encoded in self._encoded.items():
            with counted("evaluating", len(encoded), f"{split} examples") as advance:
                splits[split] = self._split_logits(encoded, state, base, stop or Stop(), advance)
        return splits

    def _split_logits(
        self,
        encoded: Encoded,
        state: TrainState,
        base: Base,
        stop: Stop,
        advance: Callable[[int], None],
    ) -> np.ndarray:
        out = np.zeros((prod(state.members), len(encoded), self.task.num_labels), np.float32)
        for indices, logits in self._dispatch(encoded, state, base, stop):
            rows = np.asarray(logits).reshape(len(out), -1, self.task.num_labels)
            out[:, indices] = rows[:, : len(indices)]
            advance(len(indices))
        return out

    def _dispatch(
        self, encoded: Encoded, state: TrainState, base: Base, stop: Stop
    ) -> Iterator[tuple[np.ndarray, jax.Array]]:
        """Yield each batch's logits `IN_FLIGHT` calls late: the device never waits for the host."""
        pending: deque[tuple[np.ndarray, jax.Array]] = deque()
        for indices, batch in self._batches(encoded):
            pending.append((indices, self._program(state, base, batch, stop)(state, base, batch)))
            if len(pending) > IN_FLIGHT:
                yield pending.popleft()
            stop.check()
        yield from pending

    def _batches(self, encoded: Encoded) -> Iterator[tuple[np.ndarray, Any]]:
        for indices, own in evaluation_batches(encoded, **self._batching):
            yield indices, self._layout.batch(own)

    def _program(
        self, state: TrainState, base: Base, batch: Any, stop: Stop
    ) -> Callable[..., jax.Array]:
        stop.check()
        shape = batch["input_ids"].shape
        if shape not in self._programs:
            rows, length = shape
            with announced(f"compiling the evaluation, {rows} × {length} tokens"):
                self._programs[shape] = stop.compile(self._logits.lower(state, base, batch))
        return self._programs[shape]

"""Predictions over many batches, with one program for each shape of batches."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.stages import Compiled, Lowered
from jaxtyping import PyTree

from increlora_jax.runtime.preemption import Stop
from increlora_jax.tasks.kind import Batch, Predictions
from increlora_jax.training.batches import Shapes, describe_batch, shapes_of
from increlora_jax.training.programs import Background, Programs, describe_arrays
from increlora_jax.training.sharding import Layout

IN_FLIGHT = 4
"""Calls whose predictions are not yet read."""

Batches = Iterable[tuple[np.ndarray, Batch]]
"""The indices of examples, and a batch of them."""


class Forward:
    """Compiled forward pass of a model; several threads may use it.

    Args:
        predict: (arrays of the model, batch) → predictions with a leading axis of rows; traced.
        layout: the shardings of batches.
    """

    def __init__(self, predict: Callable[[PyTree, Batch], Predictions], layout: Layout) -> None:
        self._jitted = jax.jit(predict, out_shardings=layout.everywhere)
        self._layout = layout
        self._programs = Programs[Shapes]()
        self._lock = threading.Lock()

    def over(
        self,
        batches: Batches,
        count: int,
        model: PyTree,
        stop: Stop,
        advance: Callable[[int], None] = lambda _: None,
    ) -> Predictions:
        """Predict rows in batches.

        Args:
            batches: the batches that this process makes.
            count: rows in all of them.
            model: the arrays of the model.
            stop: a request to stop.
            advance: called with the number of further rows done.

        Returns:
            The predictions in the order of the indices, as host arrays.

        Raises:
            Preempted: a stop was requested.
        """
        gathered = None
        for indices, predicted in self._dispatch(batches, model, stop):
            rows = jax.tree.map(np.asarray, predicted)
            if gathered is None:
                gathered = jax.tree.map(lambda x: np.zeros((count, *x.shape[1:]), x.dtype), rows)
            for whole, part in zip(jax.tree.leaves(gathered), jax.tree.leaves(rows), strict=True):
                whole[indices] = part[: len(indices)]
            advance(len(indices))
        return gathered

    def compile_ahead(self, batch: Batch, model: PyTree, background: Background) -> None:
        """Compile the program for the shape of a batch in the background."""
        placed = self._layout.batch(batch)
        self._programs.compile_ahead(shapes_of(placed), self._lowering(model, placed), background)

    def _dispatch(
        self, batches: Batches, model: PyTree, stop: Stop
    ) -> Iterator[tuple[np.ndarray, Predictions]]:
        """Yield each batch's predictions `IN_FLIGHT` calls late: no device waits for the host."""
        pending: deque[tuple[np.ndarray, Predictions]] = deque()
        for indices, own in batches:
            batch = self._layout.batch(own)
            pending.append((indices, self._program(model, batch, stop)(model, batch)))
            if len(pending) > IN_FLIGHT:
                yield pending.popleft()
            stop.check()
        yield from pending

    def _program(self, model: PyTree, batch: Batch, stop: Stop) -> Compiled:
        stop.check()
        key = shapes_of(batch)
        with self._lock:
            if key not in self._programs:
                name = f"compiling the evaluation, {describe_batch(batch)}"
                self._programs.compile(key, self._lowering(model, batch), name, stop)
            return self._programs[key]

    def _lowering(self, model: PyTree, batch: Batch) -> Callable[[], Lowered]:
        arrays = describe_arrays((model, batch))
        return lambda: self._jitted.lower(*arrays)

"""The runs that train together, as one run to the loop.

Their states, batches and numbers are stacked along a first axis, the members. A single run has no
such axis, so that its programs are those of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from increlora_jax.methods.base import Info
from increlora_jax.nn.kernels import path_of
from increlora_jax.nn.report import ranks_of, slot_sizes
from increlora_jax.training.journal import Journal
from increlora_jax.training.progress import Progress
from increlora_jax.training.state import TrainState
from increlora_jax.training.timetable import wants_score

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., object])


def members(state: TrainState) -> tuple[int, ...]:
    """Return the axis of members: (n,) of n runs that train together, () of a single run."""
    return state.step.shape


def rows_axis(state: TrainState, accumulation: int) -> int:
    """Return the axis of a batch that its rows are along, behind members and micro-batches."""
    return len(members(state)) + int(accumulation > 1)


def join(states: Sequence[TrainState]) -> TrainState:
    """Stack the states of runs along the axis of members; a single state stays as it is."""
    if len(states) == 1:
        return states[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def pick(state: TrainState, index: int) -> TrainState:
    """Return the state of one member; of a single run it is `state`."""
    return _pick(state, index) if members(state) else state


@partial(jax.jit, static_argnames="index")
def _pick(tree: T, index: int) -> T:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def over_members(
    state: TrainState, function: Function, *axes: int | None, out_axes: int = 0
) -> Function:
    """Map a function over the members of a state; for a single run it is the function itself.

    Args:
        state: the state that the function will be called with, or one of its shape.
        function: takes the state of one run, and more arguments.
        *axes: the axis of members of each further argument; None if the members share it.
        out_axes: the axis of members of the result; default 0.
    """
    if not members(state):
        return function
    mapped: Function = jax.vmap(function, in_axes=(0, *axes), out_axes=out_axes)
    return mapped


def split(tree: T, state: TrainState, axis: int = 0) -> list[T]:
    """Return the part of each member of a tree of host arrays."""
    return _split(tree, members(state), axis)


def _split(tree: T, shape: tuple[int, ...], axis: int) -> list[T]:
    if not shape:
        return [tree]
    parts = [partial(np.take, indices=index, axis=axis) for index in range(shape[0])]
    return [jax.tree.map(part, tree) for part in parts]


class Together:
    """The journals and kept adapters of all members, which a loop uses as those of one run.

    Args:
        journals: of each member.
        keep: saves the last or the best adapter of a run, by (index, state, is_best).
    """

    def __init__(
        self, journals: Sequence[Journal], keep: Callable[[int, TrainState, bool], None]
    ) -> None:
        self._journals = journals
        self._keep = keep
        self._shape = (len(journals),) if len(journals) > 1 else ()

    @property
    def progress(self) -> list[Progress]:
        """The progress of each member; steps and times are the same in all."""
        return [journal.progress for journal in self._journals]

    @property
    def _training(self) -> list[Journal]:
        """The journals of members that have not stopped early."""
        return [journal for journal in self._journals if not journal.is_stopped]

    @property
    def are_stopped(self) -> bool:
        """True if every member has stopped early."""
        return not self._training

    def begin(self, state: TrainState, modules: tuple[str, ...]) -> None:
        """Note the ranks, in module order, that growth is counted from."""
        for index, journal in enumerate(self._journals):
            own = pick(state, index)
            ranks, sizes = ranks_of(own.slots), slot_sizes(own.params.adapter, own.slots)
            journal.begin(
                {name: ranks[name] for name in modules},
                {name: sizes[path_of(name)] for name in modules},
            )

    def wants_score(self, steps: Iterable[int], *, known_before: int) -> bool:
        """Return whether a member wants a step scored. The score changes nothing for the others."""
        return any(
            wants_score(step, journal.progress, journal.method, known_before=known_before)
            for step in steps
            for journal in self._training
        )

    def may_score(self, steps: Iterable[int], known_before: int, *, is_scored: bool) -> bool:
        """Return whether one of some steps ahead may be scored, or may be not, for all known."""

        def answers(step: int) -> Iterator[bool]:
            for journal in self._training:
                yield journal.method.is_scored(step, journal.progress.is_finished(known_before))
                if not is_scored:  # once the budget is met
                    yield journal.method.is_scored(step, True)

        return any(is_scored in answers(step) for step in steps)

    def read(self, step: int, numbers: Info, *, is_timed: bool) -> tuple[list[float], list[int]]:
        """Note the numbers of a step; return the loss and the total rank of each member.

        Raises:
            NonFiniteError: too many steps of a member in a row were not finite.
            WriteError: a log cannot be written.
        """
        each = _split(numbers, self._shape, 0)
        for journal, own in zip(self._journals, each, strict=True):
            journal.read(step, own, is_timed=is_timed)
        return [float(own["loss"]) for own in each], [int(own["total_rank"]) for own in each]

    def note_metrics(self, done: int, metrics: list[dict[str, float]], state: TrainState) -> None:
        """Note the metrics of each member after `done` steps; keep adapters that are the best.

        If a member stops early, its last adapter is kept now, since later steps change its arrays.
        """
        for index, journal in enumerate(self._journals):
            if journal.is_stopped:
                continue
            if journal.note_metrics(done, metrics[index]):
                self._keep(index, pick(state, index), True)
            if journal.is_stopped:
                self._keep(index, pick(state, index), False)

    def keep_last(self, state: TrainState) -> None:
        """Keep the adapter of each member that has not stopped early as it is in `state`."""
        for index, journal in enumerate(self._journals):
            if not journal.is_stopped:
                self._keep(index, pick(state, index), False)

    def take_news(self) -> Iterator[str]:
        """Return the news of all members since the last call."""
        for journal in self._journals:
            yield from journal.take_news()

    def close_at(self, step: int, seconds: float, training_seconds: float) -> list[Progress]:
        """Write the logs to disk; return the progress of each member at the checkpoint `step`."""
        return [journal.close_at(step, seconds, training_seconds) for journal in self._journals]

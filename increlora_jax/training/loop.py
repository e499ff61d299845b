"""The loop of a run: dispatch steps, read their numbers late, evaluate, save."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jax.stages import Compiled, Lowered, Wrapped

from increlora_jax.errors import NonFiniteError
from increlora_jax.methods.base import Info
from increlora_jax.runtime.console import Bar
from increlora_jax.runtime.preemption import Stop
from increlora_jax.runtime.signals import Preempted
from increlora_jax.tasks.kind import Batch
from increlora_jax.training.batches import Shapes, describe_batch, shapes_of
from increlora_jax.training.checkpoint import Checkpoints
from increlora_jax.training.clock import Clock
from increlora_jax.training.evaluation import Evaluator
from increlora_jax.training.journal import Journal
from increlora_jax.training.programs import Background, Programs, describe_arrays
from increlora_jax.training.progress import Progress
from increlora_jax.training.sharding import Layout
from increlora_jax.training.stacked_state import Stacker
from increlora_jax.training.state import TrainState
from increlora_jax.training.step import Base, Trainer
from increlora_jax.training.timetable import Timetable
from increlora_jax.training.together import Together, members, over_members, rows_axis

LAG = 4
"""Calls in flight before the numbers of the oldest are read: no accelerator waits for the host.

Decisions of the host use numbers that are exactly LAG calls old, so that a resumed run decides the
same.
"""


class Outcome(NamedTuple):
    """The outcome of a run beside its state; times are of all runs that trained together."""

    metrics: dict[str, float]
    best_metrics: dict[str, float]
    rounds: dict[int, dict[str, int]]
    skipped: list[int]
    step_compilations: int
    seconds: float
    seconds_to_first_step: float
    phases: dict[str, float]  # seconds of this process, by phase
    tokens_per_second: float
    padding_share: float | None  # of all tokens; None if no step was timed
    best_step: int | None = None
    stopped: int | None = None  # the step after which it stopped early


@dataclass(frozen=True, eq=False)
class Job:
    """The parts of a run that a loop uses; runs that train together have their arrays stacked.

    Attributes:
        trainer, layout, evaluator, timetable, checkpoints: of all runs.
        batch_at: makes the batch of a step; batches of a block (`Timetable.block`) have one shape.
        keep: saves, by (index, state, is_best), the last or the best adapter of a run.
        journals: one for each run.
        bar, clock, stop: of the process.
        steps_by_shape: lists the steps of each known shape of a batch, so that their programs
            compile ahead; default: none are known.
        after_evaluation: called when the metrics of an evaluation are in the logs; default: not.
    """

    trainer: Trainer
    layout: Layout
    evaluator: Evaluator
    timetable: Timetable
    checkpoints: Checkpoints
    batch_at: Callable[[int], dict[str, np.ndarray]]
    keep: Callable[[int, TrainState, bool], None]
    journals: Sequence[Journal]
    bar: Bar
    clock: Clock
    stop: Stop
    steps_by_shape: Callable[[], Sequence[Sequence[int]]] = tuple
    after_evaluation: Callable[[], None] = lambda: None


class Loop:
    """Training of a job from the step that its journals have reached; donates `state`."""

    def __init__(self, job: Job, state: TrainState, base: Base):
        self._job = job
        self._programs = Programs[tuple[Shapes, bool]]()
        self._background = Background()
        self._pending: deque[tuple[range, Info]] = deque()
        self._calls = 0
        self._runs = Together(job.journals, job.keep)
        before = self._runs.progress[0]
        self._done = self._first = self._saved = before.step
        self._evaluated = before.evaluated
        job.clock.add_earlier(before.seconds, before.training_seconds)
        self._runs.begin(state, job.trainer.skeleton.modules)
        self._stacker = Stacker(job.layout, state)
        self._state, self._base = self._stacker.stack(state), base

    def run(self) -> tuple[TrainState, list[Outcome]]:
        """Train to the last step; keep the best and last adapters.

        Raises:
            NonFiniteError: too many steps were not finite; the adapters without them are kept.
            Preempted: a stop was requested; a checkpoint is saved.
            WriteError: a checkpoint or a log cannot be written.
        """
        try:
            with self._job.stop.deferred():
                self._train_all()
        except Preempted:
            self._save()
            raise
        except (NonFiniteError, KeyboardInterrupt):
            self._keep_last()
            raise
        finally:
            self._background.close(waits=not self._job.stop.is_requested)
        self._keep_last()
        return self._whole(), [self._outcome(progress) for progress in self._runs.progress]

    def _whole(self) -> TrainState:
        """Return the state by module."""
        return self._stacker.unstack(self._state)

    def _train_all(self) -> None:
        self._after(self._done)
        while self._done < self._job.timetable.total_steps and not self._runs.are_stopped:
            self._job.stop.check_call(self._calls)
            self._job.checkpoints.check()
            self._train(self._job.timetable.next_steps(self._done))
            self._after(self._done)

    def _after(self, done: int) -> None:
        """Evaluate and save if either is due after `done` steps."""
        if self._job.timetable.is_evaluated(done) and done > self._evaluated:
            self._evaluate(done)
        is_new_best = done > 0 and any(p.best_step == done for p in self._runs.progress)
        if is_new_best or self._job.timetable.is_saved(done, self._saved):
            self._save()

    def _train(self, steps: range) -> None:
        batch = self._batch(steps)
        program = self._program(batch, self._is_scored(steps), is_block=len(steps) > 1)
        self._state, info = program(self._state, self._base, batch)
        self._done, self._calls = steps.stop, self._calls + 1
        self._pending.append((steps, info))
        if steps.start == self._first:
            jax.block_until_ready(info)
            self._job.clock.mark_first_step()
        while len(self._pending) > LAG:
            self._read_oldest()

    def _batch(self, steps: range) -> Batch:
        """Return the batch of a step on the devices, or the stacked batches of a block."""
        axis = rows_axis(self._state, self._job.trainer.accumulation)
        own = [self._job.batch_at(step) for step in steps]
        if len(own) == 1:
            return self._job.layout.batch(own[0], axis)
        return self._job.layout.batch(
            jax.tree.map(lambda *arrays: np.stack(arrays), *own), axis + 1
        )

    def _is_scored(self, steps: range) -> bool:
        """Return whether any run wants a step scored; the score changes nothing for the others."""
        block = self._job.timetable.block(steps.start)
        known = block.start - LAG * len(block)
        return self._runs.wants_score(block, known_before=known)

    def _program(self, batch: Batch, is_scored: bool, *, is_block: bool) -> Compiled:
        """Return the compiled step for the shape of a batch; growth needs no other program."""
        key = shapes_of(batch), is_scored

        def start_others() -> None:
            if self._done == self._first:
                self._compile_ahead(batch, is_block=is_block)

        if key not in self._programs:
            self._drain()
            name, stop = _name_program(batch, is_scored), self._job.stop
            with self._job.clock.phase("compiling"):
                lower = self._lowering(batch, is_scored, is_block=is_block)
                self._programs.compile(key, lower, name, stop, meanwhile=start_others)
        return self._programs[key]

    def _compile_ahead(self, batch: Batch, *, is_block: bool) -> None:
        """Compile the programs that are needed later, beside the first one and the first steps."""
        timetable, background = self._job.timetable, self._background
        self._compile_kinds(batch, range(self._done, timetable.total_steps), is_block=is_block)
        self._job.evaluator.compile_ahead(self._whole(), self._base, background)
        if not background.is_used:
            return
        for steps in self._job.steps_by_shape():
            if ahead := [step for step in steps if step >= self._done]:
                calls = timetable.next_steps(timetable.block(ahead[0]).start)
                self._compile_kinds(self._batch(calls), ahead, is_block=len(calls) > 1)

    def _compile_kinds(self, batch: Batch, ahead: Sequence[int], *, is_block: bool) -> None:
        """Compile the scored and the other step for the shape of a batch, if steps ahead need them.

        The one that is needed first comes first.
        """
        is_first_scored = self._is_scored(range(ahead[0], ahead[0] + 1))
        for is_scored in (is_first_scored, not is_first_scored):
            key = shapes_of(batch), is_scored
            if self._runs.may_score(ahead, self._done, is_scored=is_scored):
                lower = self._lowering(batch, is_scored, is_block=is_block)
                self._programs.compile_ahead(key, lower, self._background)

    def _lowering(self, batch: Batch, is_scored: bool, *, is_block: bool) -> Callable[[], Lowered]:
        """Return a function that lowers the step for the shape of a batch, in any thread."""
        trainer, layout = self._job.trainer, self._job.layout
        arrays = describe_arrays((self._state, self._base, batch))
        count_tokens = self._job.evaluator.kind.count_tokens
        jitted = jit_step(trainer, layout, arrays[0], count_tokens, is_block=is_block)
        return lambda: jitted.lower(*arrays, is_scored=is_scored)

    def _read_oldest(self) -> None:
        steps, info = self._pending.popleft()
        told = jax.tree.map(np.asarray, info)
        # The clock of training starts after the first call.
        is_timed = steps.start > self._first
        for place, step in enumerate(steps):
            self._read(step, _at(place, told) if len(steps) > 1 else told, is_timed)

    def _read(self, step: int, told: Info, is_timed: bool) -> None:
        losses, ranks = self._runs.read(step, told, is_timed=is_timed)
        self._tell_news(f"step {step}")
        speeds = map(self._tokens_per_second, self._runs.progress)
        self._job.bar.step(losses, ranks, sum(speeds))

    def _tell_news(self, when: str) -> None:
        """Print the news of all runs in one line."""
        if news := "; ".join(self._runs.take_news()):
            self._job.bar.say(f"{when}: {news}")

    def _drain(self) -> None:
        while self._pending:
            self._read_oldest()

    def _evaluate(self, done: int) -> None:
        self._drain()
        with self._job.clock.phase("evaluating"):
            state = self._whole()
            metrics = self._job.evaluator.metrics_of_each(state, self._base, self._job.stop)
            self._runs.note_metrics(done, metrics, state)
            self._tell_news(f"step {done}")
            self._job.after_evaluation()
        self._evaluated = done

    def _keep_last(self) -> None:
        self._runs.keep_last(self._whole())

    def _save(self) -> None:
        if self._saved == self._done:
            return
        self._drain()
        times = self._job.clock.seconds, self._job.clock.training_seconds
        with self._job.clock.phase("saving"):
            self._job.checkpoints.save(self._whole(), *self._runs.close_at(self._done, *times))
        self._saved = self._done

    def _tokens_per_second(self, progress: Progress) -> float:
        seconds = self._job.clock.training_seconds
        return progress.tokens / seconds if seconds else 0.0

    def _outcome(self, progress: Progress) -> Outcome:
        return Outcome(
            progress.metrics,
            progress.best_metrics,
            progress.rounds,
            progress.skipped,
            len(self._programs),
            self._job.clock.seconds,
            self._job.clock.to_first_step,
            self._job.clock.phases,
            self._tokens_per_second(progress),
            1 - progress.tokens / progress.places if progress.places else None,
            progress.best_step,
            progress.stopped,
        )


def _name_program(batch: Batch, is_scored: bool) -> str:
    return f"compiling the {'scored ' if is_scored else ''}training step, {describe_batch(batch)}"


def _at(place: int, info: Info) -> Info:
    """Return the info of one step of a block."""
    return {name: value[place] for name, value in info.items()}


def jit_step(
    trainer: Trainer,
    layout: Layout,
    state: TrainState,
    count_tokens: Callable[[Batch], tuple[jax.Array, jax.Array]],
    *,
    is_block: bool = False,
) -> Wrapped:
    """Return the jitted step over a mesh. It donates its state, and shards the new one alike.

    The step's info is replicated, and includes the counts of tokens and of places for them.

    Args:
        trainer: the fixed parts of the step.
        layout: the shardings of all arrays.
        state: a state, or its shapes; the form by module or in stacks is kept.
        count_tokens: batch → (real tokens [], places for tokens []).
        is_block: whether batches and info have a first axis of steps; default False.
    """
    step = _step_of(trainer, layout, count_tokens, is_block=is_block)
    return jax.jit(
        step,
        static_argnames="is_scored",
        donate_argnames="state",
        # The sharding of the state that came in, so that the next step accepts it.
        out_shardings=(layout.shardings(state, len(members(state))), layout.everywhere),
    )


def _step_of(
    trainer: Trainer,
    layout: Layout,
    count_tokens: Callable[[Batch], tuple[jax.Array, jax.Array]],
    *,
    is_block: bool,
) -> Callable[..., tuple[TrainState, Info]]:
    """Return the function of `jit_step`."""

    def step(
        state: TrainState, base: Base, batch: Batch, *, is_scored: bool
    ) -> tuple[TrainState, Info]:
        def of_one(state: TrainState, base: Base, batch: Batch) -> tuple[TrainState, Info]:
            whole = state._replace(params=layout.gather(state.params))
            new, info = trainer.step(whole, layout.gather(base), batch, is_scored=is_scored)
            tokens, places = count_tokens(batch)
            return new, info | {"tokens": tokens, "places": places}

        step_all = over_members(state, of_one, None, 0)
        if is_block:
            return jax.lax.scan(lambda state, batch: step_all(state, base, batch), state, batch)
        return step_all(state, base, batch)

    return step

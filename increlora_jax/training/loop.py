"""The loop of a run: dispatch steps, read their numbers late, evaluate, keep the best, save."""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from increlora_jax.methods.base import Info
from increlora_jax.nn.report import ranks_of
from increlora_jax.training.checkpoint import Checkpoints
from increlora_jax.training.clock import Clock
from increlora_jax.training.evaluation import Evaluator
from increlora_jax.training.logging import RunLog
from increlora_jax.training.preemption import Preempted, Stop
from increlora_jax.training.progress import Progress
from increlora_jax.training.sharding import Layout
from increlora_jax.training.state import TrainState
from increlora_jax.training.step import Base, Trainer

LAG = 4
"""Steps in flight before the oldest one's numbers are read: the device never waits for the host.

What the host decides by those numbers it decides LAG steps late, never earlier, whether or not it
has seen them sooner: so a resumed run decides as one that was never stopped.
"""


class NonFiniteError(ArithmeticError):
    """Too many steps in a row had a NaN or infinite loss or gradient; none changed anything."""


class Outcome(NamedTuple):
    """What a run leaves behind, beside its state."""

    metrics: dict[str, float]
    best_metrics: dict[str, float]
    rounds: dict[int, dict[str, int]]
    skipped: list[int]
    step_compilations: int
    seconds: float
    seconds_to_first_step: float
    tokens_per_second: float


class Schedule(NamedTuple):
    """When the loop does what, in steps."""

    total_steps: int
    eval_steps: int
    logging_steps: int
    save_steps: int
    max_skipped_steps: int


class Loop:
    """One run over `batch_at(step)`; `keep(state, is_best)` saves the last or the best adapter."""

    def __init__(
        self,
        trainer: Trainer,
        layout: Layout,
        evaluator: Evaluator,
        batch_at: Callable[[int], dict[str, np.ndarray]],
        keep: Callable[[TrainState, bool], None],
        schedule: Schedule,
        checkpoints: Checkpoints,
        log: RunLog,
        clock: Clock,
        stop: Stop,
    ):
        self._trainer = trainer
        self._layout = layout
        self._evaluator = evaluator
        self._batch_at = batch_at
        self._keep = keep
        self._schedule = schedule
        self._checkpoints = checkpoints
        self._log = log
        self._clock = clock
        self._stop = stop
        self._programs: dict[Any, Any] = {}
        self._pending: deque[tuple[int, Any]] = deque()

    def run(self, state: TrainState, base: Base, progress: Progress) -> tuple[TrainState, Outcome]:
        """Train from where `progress` stands to the last step; keep the best and the last adapter.

        Raises:
            NonFiniteError: after keeping the adapter without the steps that went wrong.
            Preempted: after saving a checkpoint of what was reached.
            WriteError: a checkpoint or the log cannot be written.
        """
        self._state, self._base, self._progress = state, base, progress
        self._first, self._saved = progress.step, progress.step
        self._ranks = _ranks(self._trainer, state)
        self._clock.add_earlier(progress.seconds, progress.training_seconds)
        try:
            with self._stop.deferred():
                self._train_all()
        except Preempted:
            self._save()
            raise
        except (NonFiniteError, KeyboardInterrupt):
            self._keep(self._state, False)
            raise
        self._keep(self._state, False)
        return self._state, self._outcome()

    def _train_all(self) -> None:
        total = self._schedule.total_steps
        self._after(self._progress.step)
        for step in range(self._progress.step, total):
            self._stop.check_step(step)
            self._train(step)
            self._after(step + 1)

    def _after(self, done: int) -> None:
        """Evaluate and save where that is due after `done` steps, and has not been done."""
        is_due = done % self._schedule.eval_steps == 0 or done == self._schedule.total_steps
        if is_due and done > self._progress.evaluated:
            self._evaluate(done)
        is_new_best = done > 0 and self._progress.best_step == done
        if done % self._schedule.save_steps == 0 or is_new_best:
            self._save()

    def _train(self, step: int) -> None:
        batch = self._layout.batch(self._batch_at(step), axis=int(self._trainer.accumulation > 1))
        program = self._program(batch, self._is_scored(step))
        self._state, info = program(self._state, self._base, batch)
        self._progress.step = step + 1
        self._pending.append((step, info))
        if step == self._first:
            jax.block_until_ready(info)
            self._clock.mark_first_step()
        while len(self._pending) > LAG:
            self._read_oldest()

    def _is_scored(self, step: int) -> bool:
        progress, horizon = self._progress, step - LAG
        is_finished = progress.spent is not None and progress.spent < horizon
        counted = step - sum(at < horizon for at in progress.skipped)
        # Steps in flight may be skipped: the optimizer is at one of these, and a round that is not
        # scored would be lost.
        possible = range(max(0, counted - LAG), counted + 1)
        return any(self._trainer.method.is_scored(at, is_finished) for at in possible)

    def _program(self, batch: Any, is_scored: bool) -> Any:
        """The compiled step for a batch's shape; nothing that grows can make another one."""
        key = (batch["input_ids"].shape, is_scored)
        if key not in self._programs:
            self._drain()
            with self._clock.paused():
                jitted = jit_step(self._trainer, self._layout, self._state)
                lowered = jitted.lower(self._state, self._base, batch, is_scored=is_scored)
                self._programs[key] = self._stop.compile(lowered)
        return self._programs[key]

    def _read_oldest(self) -> None:
        step, info = self._pending.popleft()
        numbers = jax.device_get(info)
        tokens = int(numbers["tokens"])
        if numbers["is_finite"]:
            self._progress.skipped_in_a_row = 0
        else:
            self._note_skipped(step, numbers)
        # The clock of training starts after the first step.
        self._progress.tokens += tokens if step > self._first else 0
        self._note_growth(step, numbers)
        shown = {n: float(numbers[n]) for n in ("loss", "orth_loss", "grad_norm", "learning_rate")}
        shown |= {"total_rank": int(numbers["total_rank"]), "tokens": tokens}
        last = self._schedule.total_steps - 1
        is_written = step % self._schedule.logging_steps == 0 or step == last
        self._log.step(step, shown, self._tokens_per_second(), is_written=is_written)

    def _note_skipped(self, step: int, numbers: Any) -> None:
        progress = self._progress
        progress.skipped.append(step)
        progress.skipped_in_a_row += 1
        what = f"the loss is {numbers['loss']} and the gradient norm {numbers['grad_norm']}"
        self._log.say(f"step {step} is skipped: {what}")
        if progress.skipped_in_a_row > self._schedule.max_skipped_steps:
            self._pending.clear()
            raise NonFiniteError(
                f"step {step}: {what}, {progress.skipped_in_a_row} steps in a row (more than "
                f"--max-skipped-steps {self._schedule.max_skipped_steps}); they changed nothing "
                "and the adapter without them is saved. Lower --learning-rate, raise "
                "--warmup-steps, or use --dtype float32"
            )

    def _note_growth(self, step: int, numbers: Any) -> None:
        budget = self._trainer.method.rank_budget
        is_spent = budget is not None and int(numbers["total_rank"]) >= budget
        if is_spent and self._progress.spent is None:
            self._progress.spent = step
        if "rank" not in numbers:
            return
        growth = numbers["rank"] - self._ranks
        if numbers["is_finite"] and growth.any():
            modules = self._trainer.skeleton.modules
            grown = {modules[i]: int(growth[i]) for i in np.flatnonzero(growth)}
            self._progress.rounds[step] = grown
            self._ranks = numbers["rank"]

    def _drain(self) -> None:
        while self._pending:
            self._read_oldest()

    def _evaluate(self, done: int) -> None:
        self._drain()
        progress = self._progress
        with self._clock.paused():
            metrics = self._evaluator.metrics(self._state, self._base, self._stop)
            self._log.evaluation(done, metrics)
            first = next(iter(metrics))
            if not progress.best_metrics or metrics[first] > progress.best_metrics[first]:
                progress.best_metrics, progress.best_step = metrics, done
                self._keep(self._state, True)
            progress.metrics, progress.evaluated = metrics, done

    def _save(self) -> None:
        if self._saved == self._progress.step:
            return
        self._drain()
        progress = self._saved_progress()
        self._checkpoints.save(self._state, progress)
        self._saved = progress.step

    def _saved_progress(self) -> Progress:
        progress = self._progress
        progress.seconds = self._clock.seconds
        progress.training_seconds = self._clock.training_seconds
        progress.log_bytes = self._log.sync()
        return progress

    def _tokens_per_second(self) -> float:
        seconds = self._clock.training_seconds
        return self._progress.tokens / seconds if seconds else 0.0

    def _outcome(self) -> Outcome:
        progress = self._progress
        return Outcome(
            progress.metrics,
            progress.best_metrics,
            progress.rounds,
            progress.skipped,
            len(self._programs),
            self._clock.seconds,
            self._clock.to_first_step,
            self._tokens_per_second(),
        )


def jit_step(trainer: Trainer, layout: Layout, state: TrainState) -> Any:
    """The step over a mesh, to be compiled: its state, which it overwrites, lies as `state` does.

    What the step tells, the count of real tokens with it, lies on every device.
    """

    def step(
        state: TrainState, base: Base, batch: Any, *, is_scored: bool
    ) -> tuple[TrainState, Info]:
        whole = state._replace(params=layout.gather(state.params))
        new, info = trainer.step(whole, layout.gather(base), batch, is_scored=is_scored)
        return new, info | {"tokens": _count_tokens(batch)}

    return jax.jit(
        step,
        static_argnames="is_scored",
        donate_argnames="state",
        # As it came, so that the next step takes it.
        out_shardings=(layout.shardings(state), layout.everywhere),
    )


def _count_tokens(batch: dict[str, jax.Array]) -> jax.Array:
    """The tokens of real examples; padding, in rows or of rows, does not count."""
    return jnp.sum(batch["attention_mask"] * (batch["weight"] > 0)[..., None])


def _ranks(trainer: Trainer, state: TrainState) -> np.ndarray:
    ranks = ranks_of(state.slots)
    return np.array([ranks[name] for name in trainer.skeleton.modules])

"""The loop of a run: dispatch steps, read their numbers late, evaluate, keep the best."""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from increlora_jax.nn.report import ranks_of
from increlora_jax.training.clock import Clock
from increlora_jax.training.evaluation import Evaluator
from increlora_jax.training.logging import RunLog
from increlora_jax.training.state import TrainState
from increlora_jax.training.step import Base, Trainer

LAG = 4
"""Steps in flight before the oldest one's numbers are read: the device never waits for the host."""


class NonFiniteError(ArithmeticError):
    """The loss or the gradient of a step was NaN or infinite; that step changed nothing."""


class Outcome(NamedTuple):
    """What a run leaves behind, beside its state."""

    metrics: dict[str, float]
    best_metrics: dict[str, float]
    rounds: dict[int, dict[str, int]]
    step_compilations: int
    seconds: float
    seconds_to_first_step: float
    tokens_per_second: float


class Schedule(NamedTuple):
    """When the loop does what, in steps."""

    total_steps: int
    eval_steps: int
    logging_steps: int


class Loop:
    """One run over `batch_at(step)`; `keep(state, is_best)` saves the last or the best adapter."""

    def __init__(
        self,
        trainer: Trainer,
        evaluator: Evaluator,
        batch_at: Callable[[int], dict[str, np.ndarray]],
        keep: Callable[[TrainState, bool], None],
        schedule: Schedule,
        log: RunLog,
        clock: Clock,
    ):
        self._trainer = trainer
        self._evaluator = evaluator
        self._batch_at = batch_at
        self._keep = keep
        self._schedule = schedule
        self._log = log
        self._clock = clock
        self._programs: dict[Any, Any] = {}
        self._pending: deque[tuple[int, Any, int]] = deque()
        self._rounds: dict[int, dict[str, int]] = {}
        self._is_finished = False
        self._best: dict[str, float] = {}
        self._tokens = 0

    def run(self, state: TrainState, base: Base) -> tuple[TrainState, Outcome]:
        """Train to the last step; the best and the last adapter are kept.

        Raises:
            NonFiniteError: after keeping the adapter without the step that went wrong.
        """
        self._state, self._base = state, base
        self._ranks = _ranks(self._trainer, state)
        metrics: dict[str, float] = {}
        try:
            for step in range(self._schedule.total_steps):
                self._train(step)
                if self._is_evaluated(step + 1):
                    metrics = self._evaluate(step + 1)
        except (NonFiniteError, KeyboardInterrupt):
            self._keep(self._state, False)
            raise
        self._keep(self._state, False)
        seconds = self._clock.training_seconds
        outcome = Outcome(
            metrics,
            self._best,
            self._rounds,
            len(self._programs),
            self._clock.seconds,
            self._clock.to_first_step,
            self._tokens / seconds if seconds else 0.0,
        )
        return self._state, outcome

    def _train(self, step: int) -> None:
        batch = self._batch_at(step)
        is_scored = self._trainer.method.is_scored(step, self._is_finished)
        program = self._program(batch, is_scored)
        self._state, info = program(self._state, self._base, batch)
        tokens = _count_tokens(batch)
        if step == 0:
            jax.block_until_ready(info)
            self._clock.mark_first_step()
            tokens = 0  # the clock of training starts after it
        self._pending.append((step, info, tokens))
        while len(self._pending) > LAG:
            self._read_oldest()

    def _program(self, batch: Any, is_scored: bool) -> Any:
        """The compiled step for a batch's shape; nothing that grows can make another one."""
        key = (batch["input_ids"].shape, is_scored)
        if key not in self._programs:
            self._drain()
            with self._clock.paused():
                jitted = jax.jit(
                    self._trainer.step, static_argnames="is_scored", donate_argnames="state"
                )
                lowered = jitted.lower(self._state, self._base, batch, is_scored=is_scored)
                self._programs[key] = lowered.compile()
        return self._programs[key]

    def _read_oldest(self) -> None:
        step, info, tokens = self._pending.popleft()
        numbers = jax.device_get(info)
        if not numbers["is_finite"]:
            self._pending.clear()
            raise NonFiniteError(
                f"step {step}: the loss is {numbers['loss']} and the gradient norm "
                f"{numbers['grad_norm']}; that step changed nothing and the adapter without it is "
                "saved. Lower --learning-rate, raise --warmup-steps, or use --dtype float32"
            )
        self._tokens += tokens
        self._note_growth(step, numbers)
        budget = self._trainer.method.rank_budget
        self._is_finished = budget is not None and int(numbers["total_rank"]) >= budget
        shown = {n: float(numbers[n]) for n in ("loss", "orth_loss", "grad_norm", "learning_rate")}
        shown |= {"total_rank": int(numbers["total_rank"]), "tokens": tokens}
        shown["tokens_per_second"] = self._tokens / max(self._clock.training_seconds, 1e-9)
        last = self._schedule.total_steps - 1
        is_written = step % self._schedule.logging_steps == 0 or step == last
        self._log.step(step, shown, is_written=is_written)

    def _note_growth(self, step: int, numbers: Any) -> None:
        if "rank" not in numbers:
            return
        growth = numbers["rank"] - self._ranks
        if growth.any():
            modules = self._trainer.skeleton.modules
            self._rounds[step] = {modules[i]: int(growth[i]) for i in np.flatnonzero(growth)}
            self._ranks = numbers["rank"]

    def _drain(self) -> None:
        while self._pending:
            self._read_oldest()

    def _is_evaluated(self, done: int) -> bool:
        return done % self._schedule.eval_steps == 0 or done == self._schedule.total_steps

    def _evaluate(self, done: int) -> dict[str, float]:
        self._drain()
        with self._clock.paused():
            metrics = self._evaluator.metrics(self._state, self._base)
            self._log.evaluation(done, metrics)
            first = next(iter(metrics))
            if not self._best or metrics[first] > self._best[first]:
                self._best = metrics
                self._keep(self._state, True)
        return metrics


def _count_tokens(batch: dict[str, np.ndarray]) -> int:
    """The tokens of real examples; padding, in rows or of rows, does not count."""
    return int((batch["attention_mask"] * batch["weight"][..., None]).sum())


def _ranks(trainer: Trainer, state: TrainState) -> np.ndarray:
    ranks = ranks_of(state.slots)
    return np.array([ranks[name] for name in trainer.skeleton.modules])

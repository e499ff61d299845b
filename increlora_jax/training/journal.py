"""The notes of the host on one run, as its numbers arrive."""

import math
from collections.abc import Callable

import numpy as np

from increlora_jax.errors import NonFiniteError
from increlora_jax.methods.base import Info, Method
from increlora_jax.tasks.kind import larger_is_better
from increlora_jax.training.progress import Progress
from increlora_jax.training.run_log import RunLog
from increlora_jax.training.timetable import Timetable


class Journal:
    """Keeper of the progress and the log of a run; one of several runs has a name."""

    def __init__(
        self,
        progress: Progress,
        log: RunLog,
        timetable: Timetable,
        method: Method,
        say: Callable[[str], None],
        name: str = "",
        is_better: Callable[[float, float], bool] = larger_is_better,
    ):
        self.progress = progress
        self._log = log
        self._timetable = timetable
        self.method = method
        self._say = say
        self._name = name
        self._is_better = is_better
        self._news: list[str] = []

    def begin(self, ranks: dict[str, int], sizes: dict[str, int]) -> None:
        """Note the ranks that growth is counted from; log the ranks of a new run.

        Args:
            ranks: The rank of every module, in module order.
            sizes: The parameters of one slot of every module, in the same order.
        """
        self._modules, self._ranks = tuple(ranks), np.array(list(ranks.values()), int)
        self._sizes = np.array(list(sizes.values()), int)
        if ranks and self.progress.step == 0 and not self.progress.log_bytes:
            self._log_growth(0, {})

    def read(self, step: int, numbers: Info, *, is_timed: bool) -> None:
        """Note the numbers of a step; if `is_timed`, its tokens count for speed and padding.

        Raises:
            NonFiniteError: too many steps in a row were not finite.
            WriteError: the log cannot be written.
        """
        progress, tokens = self.progress, int(numbers["tokens"])
        if is_timed:
            progress.tokens += tokens
            progress.places += int(numbers["places"])
        if self.is_stopped:  # other runs of the same program still train
            return
        if numbers["is_finite"]:
            progress.skipped_in_a_row = 0
        else:
            self._note_skipped(step, numbers)
        self._note_growth(step, numbers)
        shown = {n: float(numbers[n]) for n in ("loss", "orth_loss", "grad_norm", "learning_rate")}
        shown |= {"total_rank": int(numbers["total_rank"]), "tokens": tokens}
        if step % self._timetable.logging_steps == 0 or step == self._timetable.total_steps - 1:
            self._log.write(step, "train", shown)

    def note_metrics(self, done: int, metrics: dict[str, float]) -> bool:
        """Note the metrics on dev after `done` steps; return whether they are the best so far."""
        progress, first = self.progress, next(iter(metrics))
        self._log.write(done, "dev", metrics)
        told = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        if any(map(math.isnan, metrics.values())):
            told += " (predictions on dev are not finite: no score, and worse than any)"
        self._note(told)
        best = progress.best_metrics
        is_best = not best or self._is_better(metrics[first], best[first])
        gain = abs(metrics[first] - best[first]) if best else math.inf
        is_gain = is_best and not gain <= self._timetable.threshold
        progress.not_better = 0 if is_gain else progress.not_better + 1
        if is_best:
            progress.best_metrics, progress.best_step = metrics, done
        progress.metrics, progress.evaluated = metrics, done
        is_early = done < self._timetable.total_steps
        if progress.not_better == self._timetable.patience and is_early:
            progress.stopped = done
            self._log.write_stop(done)
            self._note(f"stops early, {progress.not_better} evaluations after the last gain")
        return is_best

    @property
    def is_stopped(self) -> bool:
        """True if the run has stopped early."""
        return self.progress.stopped is not None

    def close_at(self, step: int, seconds: float, training_seconds: float) -> Progress:
        """Write the log to disk; return the progress for the checkpoint of `step`."""
        progress = self.progress
        progress.step, progress.log_bytes = step, self._log.sync()
        progress.seconds, progress.training_seconds = seconds, training_seconds
        return progress

    def _note_skipped(self, step: int, numbers: Info) -> None:
        progress, most = self.progress, self._timetable.max_skipped_steps
        progress.skipped.append(step)
        progress.skipped_in_a_row += 1
        what = f"the loss is {numbers['loss']} and the gradient norm {numbers['grad_norm']}"
        self._tell(f"step {step} is skipped: {what}")
        if progress.skipped_in_a_row > most:
            raise NonFiniteError(
                f"{self._prefix}step {step}: {what}, {progress.skipped_in_a_row} steps in a row "
                f"(more than --max-skipped-steps {most}); they changed nothing and the adapter "
                "without them is saved. Lower --learning-rate, raise --warmup-steps, or use "
                "--dtype float32"
            )

    def _note_growth(self, step: int, numbers: Info) -> None:
        total = int(numbers["total_rank"])
        if self.method.is_finished(total) != self.progress.is_finished(step + 1):
            self.progress.finished.append(step)
        if "rank" not in numbers:
            return
        ranks = np.asarray(numbers["rank"])
        growth = ranks - self._ranks
        if numbers["is_finite"] and growth.any():
            grown = {self._modules[i]: int(growth[i]) for i in np.flatnonzero(growth)}
            self.progress.rounds[step] = grown
            self._ranks = ranks
            self._log_growth(step, numbers)
            budget = self.method.rank_budget
            goal = "" if budget is None else f" of {budget}"
            self._note(f"{_name_change(growth.sum())} total rank {total}{goal}")

    def _log_growth(self, step: int, numbers: Info) -> None:
        """Log the ranks of all modules after a step, and the importance that chose them."""
        numbers_of = {"ranks": self._ranks}
        if (importance := _importance(numbers)) is not None:
            numbers_of["importance"] = importance
        self._log.write_growth(
            step,
            {
                "total_rank": int(self._ranks.sum()),
                "parameters": int(self._ranks @ self._sizes),
                **{
                    name: dict(zip(self._modules, values.tolist(), strict=True))
                    for name, values in numbers_of.items()
                },
            },
        )

    def take_news(self) -> list[str]:
        """Return the news since the last call. The loop prints the news of all runs in one line."""
        news, self._news = self._news, []
        return news

    def _note(self, news: str) -> None:
        self._news.append(f"{self._name} {news}" if self._name else news)

    def _tell(self, message: str) -> None:
        self._say(self._prefix + message)

    @property
    def _prefix(self) -> str:
        return f"{self._name}: " if self._name else ""


def _importance(numbers: Info) -> np.ndarray | None:
    """Return the importance of every module [modules], if a method gives it: Ī·Ū, or the score."""
    if "sensitivity" in numbers and "uncertainty" in numbers:
        return np.asarray(numbers["sensitivity"]) * np.asarray(numbers["uncertainty"])
    return np.asarray(numbers["importance"]) if "importance" in numbers else None


def _name_change(growth: int) -> str:
    """Return the first words of a note on a change of the total rank."""
    if growth == 0:
        return "moves slots at"
    return "grows to" if growth > 0 else "shrinks to"

"""The timetable of a run: its calls, evaluations and checkpoints, and the steps that are scored."""

from typing import NamedTuple

from increlora_jax.methods.base import Method
from increlora_jax.training.progress import Progress


class Timetable(NamedTuple):
    """The intervals of a run, in steps.

    Attributes:
        total_steps: the length of the run, if it does not stop early.
        eval_steps: between evaluations.
        logging_steps: between lines of the log.
        save_steps: between checkpoints.
        max_skipped_steps: steps in a row that may be skipped.
        steps_per_execution: steps of one call.
        patience: evaluations in a row without a better score that end the run; None: no number.
        threshold: by how much a score must be better to count as such.
    """

    total_steps: int
    eval_steps: int
    logging_steps: int
    save_steps: int
    max_skipped_steps: int
    steps_per_execution: int = 1
    patience: int | None = None
    threshold: float = 0.0

    def block(self, step: int) -> range:
        """Return the steps, this one among them, that one call may carry out."""
        start = step - step % self.steps_per_execution
        return range(start, start + self.steps_per_execution)

    def next_steps(self, done: int) -> range:
        """Return the steps of the next call: a whole block, or one step if a block is cut.

        The steps depend on nothing that may differ in a resumed run, which uses the same programs.
        """
        block = self.block(done)
        is_cut = block.stop > self.total_steps or any(self.is_evaluated(at) for at in block[1:])
        return range(done, done + 1) if is_cut or done > block.start else block

    def is_evaluated(self, done: int) -> bool:
        """Return whether an evaluation follows so many steps."""
        return done % self.eval_steps == 0 or done == self.total_steps

    def is_saved(self, done: int, saved: int) -> bool:
        """Return whether a checkpoint is due after so many steps, the last being after `saved`."""
        return done // self.save_steps > saved // self.save_steps


def wants_score(step: int, progress: Progress, method: Method, *, known_before: int) -> bool:
    """Return whether a run wants a step scored.

    Args:
        step: in batches, skipped ones among them.
        progress: of the run.
        method: of the run.
        known_before: progress is used up to this step only, so that a resumed run decides the same.
    """
    is_finished = progress.is_finished(known_before)
    counted = step - sum(at < known_before for at in progress.skipped)
    # Steps in flight may be skipped: the optimizer is at one of these, and a round that is not
    # scored would be lost.
    possible = range(max(0, counted - (step - known_before)), counted + 1)
    return any(method.is_scored(at, is_finished) for at in possible)

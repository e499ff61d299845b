"""The progress of a run, beside its state."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass
class Progress:
    """Plain numbers that every checkpoint holds; steps are counted in batches.

    Attributes:
        step: Batches given out so far.
        evaluated: The step of the last evaluation; -1 asks for one before the first step.
        metrics, best_metrics: Of the last and of the best evaluation.
        best_step: The step of the best evaluation.
        not_better: Evaluations in a row that were not better than the best before them.
        stopped: The step after which the run stopped early; None if it did not.
        rounds: step → module → slots that it grew by.
        skipped: The steps whose loss or gradient was not finite.
        skipped_in_a_row: How many of them up to now without a good one between.
        finished: The steps after which the method was finished, or was no longer, by turns.
        tokens: Real tokens in the training steps that `training_seconds` spans.
        places: All tokens in them, padding too.
        seconds, training_seconds: Wall time of the whole run, and of its training steps.
        log_bytes: The length of `metrics.jsonl`.
    """

    step: int = 0
    evaluated: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best_metrics: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    not_better: int = 0
    stopped: int | None = None
    rounds: dict[int, dict[str, int]] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    skipped_in_a_row: int = 0
    finished: list[int] = field(default_factory=list)
    tokens: int = 0
    places: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    log_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the progress as JSON, where keys are strings."""
        return asdict(self) | {"rounds": {str(step): r for step, r in self.rounds.items()}}

    def is_finished(self, before: int) -> bool:
        """Return whether the method was finished after the last step before this one."""
        return sum(step < before for step in self.finished) % 2 == 1

    @staticmethod
    def upgrade(saved: dict[str, Any]) -> dict[str, Any]:
        """Return the saved numbers with the keys of this version: older ones held `spent`."""
        upgraded = dict(saved)
        if "spent" in upgraded and "finished" not in upgraded:
            spent = upgraded.pop("spent")
            upgraded["finished"] = [] if spent is None else [spent]
        return upgraded

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """Build the progress from the result of `to_json`."""
        return cls(**saved | {"rounds": {int(step): r for step, r in saved["rounds"].items()}})

"""Choice of the metric on dev by which adapters are compared."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from increlora_jax.errors import InputError, suggest
from increlora_jax.tasks.kind import (
    Encoded,
    Kind,
    Metrics,
    Predictions,
    count_not_finite,
    larger_is_better,
    smaller_is_better,
)

LOSS = "loss"
"""The mean loss of the first dev split, which every kind can be compared by."""


def choose_metric(
    kind: Kind, name: str | None, greater_is_better: bool | Literal["auto"] = "auto"
) -> Kind:
    """Return a kind whose first metric is the one of this name.

    Args:
        kind: The kind.
        name: One of its metrics, or `loss`; `eval_` before it is ignored, as by Hugging Face. None
            for the kind's own first metric.
        greater_is_better: Whether a larger value is better; auto: unless it is a loss.

    Raises:
        InputError: If the kind has no such metric.
    """
    if name is None:
        if greater_is_better != "auto":
            raise InputError("--greater-is-better is for --metric-for-best-model. Name it too")
        return kind
    chosen = name.removeprefix("eval_")
    if chosen not in (*kind.metrics, LOSS):
        raise InputError(
            f"--metric-for-best-model {name}: {kind.task} has {', '.join(kind.metrics)} and loss"
            f"{suggest(chosen, (*kind.metrics, LOSS))}"
        )

    def score(
        predictions: Mapping[str, Predictions], encoded: Mapping[str, Encoded], splits: Any
    ) -> Metrics:
        metrics = kind.score(predictions, encoded, splits)
        if chosen == LOSS:
            first = kind.dev_splits[0]
            if count_not_finite(predictions[first]):
                return {LOSS: math.nan, **metrics}
            told = kind.examine(predictions[first], encoded[first], splits[first])
            return {LOSS: told[LOSS], **metrics}
        return {chosen: metrics[chosen], **metrics}

    is_better = _compare(kind, chosen, greater_is_better)
    return replace(kind, score=score, metrics=_first(chosen, kind.metrics), is_better=is_better)


def _compare(
    kind: Kind, chosen: str, greater_is_better: bool | Literal["auto"]
) -> Callable[[float, float], bool]:
    """Return the comparison of a metric's values, (new, old) → whether the new one is better."""
    if greater_is_better == "auto":
        if chosen == kind.metrics[0]:
            return kind.is_better
        return smaller_is_better if chosen == LOSS else larger_is_better
    return larger_is_better if greater_is_better else smaller_is_better


def _first(chosen: str, metrics: tuple[str, ...]) -> tuple[str, ...]:
    return (chosen, *(name for name in metrics if name != chosen))

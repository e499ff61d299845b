"""Counts of a split: rows, lines and labels."""

from typing import Any

import numpy as np

from increlora_jax.tasks.data.records import quote
from increlora_jax.tasks.labelled_texts import Texts, TextTask

_MOST_LABELS = 20


def count_split(task: TextTask, split: Texts) -> dict[str, Any]:
    """Count the rows, lines and labels of a split; for scores return their range and mean."""
    counts: dict[str, Any] = {"source": split.source, "rows": len(split), "lines": split.num_lines}
    if not split.is_labelled:
        return counts
    if task.labels is None:
        scores = split.labels.astype(np.float64)
        low, high, mean = (float(f(scores)) for f in (np.min, np.max, np.mean))
        return counts | {"scores": {"min": low, "max": high, "mean": mean}}
    each = np.bincount(split.labels, minlength=len(task.labels)).tolist()
    return counts | {"labels": dict(zip(task.labels, each, strict=True))}


def describe_split(task: TextTask, split: Texts) -> str:
    """Describe these counts in one line."""
    counts = count_split(task, split)
    lines = "" if split.num_lines is None else f" of {count_word(split.num_lines, 'line')}"
    return f"{split.source}: {count_word(len(split), 'row')}{lines}; {_describe_labels(counts)}"


def count_word(count: int, word: str) -> str:
    """Return a count with its noun: `1 row`, `2 rows`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _describe_labels(counts: dict[str, Any]) -> str:
    if "scores" in counts:
        scores = counts["scores"]
        return f"scores {scores['min']:g} to {scores['max']:g}, mean {scores['mean']:.4g}"
    if "labels" not in counts:
        return "no labels"
    each = [f"{quote(label)} {count}" for label, count in counts["labels"].items()]
    more = f" and {len(each) - _MOST_LABELS} labels more" if len(each) > _MOST_LABELS else ""
    return "labels " + ", ".join(each[:_MOST_LABELS]) + more

"""Detailed figures of a split: loss, each class by itself, and the confusion matrix."""

from typing import Any

import numpy as np

from increlora_jax.tasks.labelled_texts import Texts, TextTask
from increlora_jax.tasks.metrics import compute_metrics, predict_labels


def describe_split(task: TextTask, logits: np.ndarray, split: Texts) -> dict[str, Any]:
    """Compute all figures of a split.

    Args:
        task: The task.
        logits: [n, num_labels].
        split: The n examples with their labels.

    Returns:
        `rows` and `loss` (mean cross-entropy in nats, or mean squared error). For classes also
            `accuracy`, `macro_f1` over the classes in labels or predictions, `per_class` and
            `confusion` (named labels; rows are the true ones). For scores `mse`, `mae`, `pearson`
            and `spearmanr`.
    """
    predictions = predict_labels(logits, task)
    if task.labels is None:
        return _describe_scores(predictions, split.labels)
    return _describe_classes(task.labels, logits, predictions, split.labels)


def _describe_scores(predictions: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    errors = predictions.astype(np.float64) - labels
    squared = float(np.mean(errors**2))
    return {
        "rows": len(labels),
        "loss": squared,
        "mse": squared,
        "mae": float(np.mean(np.abs(errors))),
        **compute_metrics(("pearson", "spearmanr"), predictions, labels),
    }


def _describe_classes(
    names: tuple[str, ...], logits: np.ndarray, predictions: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    right, support, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    precision, recall = _divide(right, predicted), _divide(right, support)
    f1 = _divide(2 * right, support + predicted)
    met = support + predicted > 0
    columns = {"precision": precision, "recall": recall, "f1": f1}
    per_class = {
        name: {key: float(values[index]) for key, values in columns.items()}
        | {"support": int(support[index])}
        for index, name in enumerate(names)
    }
    return {
        "rows": len(labels),
        "loss": _cross_entropy(logits, labels),
        "accuracy": float(right.sum() / len(labels)),
        "macro_f1": float(f1[met].mean()),
        "per_class": per_class,
        "confusion": {"labels": list(names), "counts": counts.tolist()},
    }


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide with 0 / 0 = 0, as scikit-learn does with `zero_division=0`."""
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    own = shifted[np.arange(len(labels)), labels]
    return float(np.mean(np.log(np.exp(shifted).sum(-1)) - own))

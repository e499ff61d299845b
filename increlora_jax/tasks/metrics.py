"""Metrics of GLUE; scikit-learn and scipy take 1.5 s to import, and are imported where needed."""

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from increlora_jax.tasks.kind import count_not_finite
from increlora_jax.tasks.labelled_texts import Texts, TextTask

# The names are those of Hugging Face's run_glue: accuracy and accuracy_mm.
_SUFFIXES = {"dev_mismatched": "_mm"}


def predict_labels(logits: np.ndarray, task: TextTask) -> np.ndarray:
    """Turn logits [n, num_labels] into class ids int32 [n], or scores float32 [n]."""
    if task.is_regression:
        return np.asarray(logits, np.float32)[:, 0]
    return np.argmax(logits, axis=-1).astype(np.int32)


def compute_metrics(
    names: Iterable[str], predictions: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Compute the named metrics of predictions [n] against labels [n], each in [-1, 1]."""
    return {name: METRICS[name](predictions, labels) for name in names}


def score_splits(
    task: TextTask, logits: Mapping[str, np.ndarray], splits: Mapping[str, Texts]
) -> dict[str, float]:
    """Compute a task's metrics on every split; the names of MNLI's second end in `_mm`.

    If a split has a logit [n, num_labels] that is not finite, its metrics are NaN.
    """
    return {
        name + _SUFFIXES.get(split, ""): value
        for split, examples in splits.items()
        for name, value in _score(task, logits[split], examples.labels).items()
    }


def _score(task: TextTask, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    if count_not_finite(logits):
        return dict.fromkeys(task.metrics, math.nan)
    return compute_metrics(task.metrics, predict_labels(logits, task), labels)


def _accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(labels == predictions))


def _f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


def _macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean F1 over the classes in labels or predictions."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def _matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    if _is_undefined(predictions, labels):
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    if _is_undefined(predictions, labels):
        return 0.0
    return float(pearsonr(predictions.astype(np.float64), labels.astype(np.float64))[0])


def _spearmanr(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if _is_undefined(predictions, labels):
        return 0.0
    return float(spearmanr(predictions, labels)[0])


def _is_undefined(predictions: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether a correlation is undefined because one side is constant; it counts as 0.

    A model with constant output has learnt nothing. NaN would compare as neither better nor worse
    than other scores, so that no best adapter could be chosen.
    """
    return bool(np.ptp(predictions) == 0 or np.ptp(labels) == 0)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews_correlation": _matthews_correlation,
    "pearson": _pearson,
    "spearmanr": _spearmanr,
}

"""Weights of classes in the training loss, so that rare classes count as much as common ones."""

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.records import quote
from increlora_jax.tasks.labelled_texts import Texts, TextTask

_MOST_SHOWN = 20


def balance(task: TextTask, train: Texts) -> np.ndarray:
    """Compute the weight of each class, float32 [num_labels], as scikit-learn's `balanced`.

    w_c = rows / (classes · rows of c), over the classes that have rows; others weigh 0.

    Raises:
        InputError: If the task has no classes.
    """
    if task.labels is None:
        raise InputError(
            f"--class-weights balanced is for classes, and the labels of {train.source} are "
            "scores. Leave it out"
        )
    counts = np.bincount(train.labels, minlength=task.num_labels)
    is_met = counts > 0
    weights = np.where(is_met, len(train) / (is_met.sum() * np.maximum(counts, 1)), 0.0)
    return weights.astype(np.float32)


def describe_weights(task: TextTask, weights: np.ndarray) -> str:
    """Return the weights in one line for the user."""
    named = [f"{quote(n)} {w:.3g}" for n, w in zip(task.labels or (), weights, strict=True)]
    more = f" and {len(named) - _MOST_SHOWN} more" if len(named) > _MOST_SHOWN else ""
    return f"class weights of the training loss: {', '.join(named[:_MOST_SHOWN])}{more}"

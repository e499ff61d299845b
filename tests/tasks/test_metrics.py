import warnings

import numpy as np
import pytest

from increlora_jax.tasks.glue import GLUE_TASKS
from increlora_jax.tasks.kind import count_not_finite
from increlora_jax.tasks.labelled_texts import Texts
from increlora_jax.tasks.metrics import (
    METRICS,
    compute_metrics,
    predict_labels,
    score_splits,
)

# 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
LABELS = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0], np.int32)
PREDICTIONS = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], np.int32)


def test_classification_metrics_equal_their_closed_forms():
    tp, fp, fn, tn = 3, 1, 2, 4
    computed = compute_metrics(("accuracy", "f1", "matthews_correlation"), PREDICTIONS, LABELS)
    assert computed == pytest.approx(
        {
            "accuracy": (tp + tn) / 10,
            "f1": 2 * tp / (2 * tp + fp + fn),
            "matthews_correlation": (tp * tn - fp * fn)
            / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
        },
        rel=1e-12,
    )


def test_correlations_equal_values_computed_by_hand():
    # x - mean: -1.5 -.5 .5 1.5; y - mean: -2 -1 -3 6; product sum 11, squares 5 and 50. Ranks of y:
    # 2 3 1 4, so 1 - 6 (1 + 1 + 4 + 0) / (4 · 15) = 0.4.
    predictions = np.float32([1, 2, 3, 4])
    labels = np.float32([1, 2, 0, 9])
    computed = compute_metrics(("pearson", "spearmanr"), predictions, labels)
    assert computed == pytest.approx({"pearson": 11 / np.sqrt(250), "spearmanr": 0.4}, rel=1e-12)


@pytest.mark.parametrize("name", ["matthews_correlation", "pearson", "spearmanr", "f1"])
def test_constant_predictions_score_zero_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert METRICS[name](np.zeros(4, np.float32), np.float32([0, 1, 1, 0])) == 0.0


@pytest.mark.parametrize("name", METRICS)
def test_single_example_has_a_finite_score(name):
    assert np.isfinite(METRICS[name](np.array([1]), np.array([1])))


def test_logits_become_ids_or_scores():
    classes = predict_labels(np.array([[0.1, 0.9, 0.0], [2.0, 1.0, 0.0]]), GLUE_TASKS["mnli"])
    scores = predict_labels(np.array([[3.5], [-1.0]]), GLUE_TASKS["stsb"])
    assert (classes.tolist(), classes.dtype) == ([1, 0], np.int32)
    assert (scores.tolist(), scores.dtype) == ([3.5, -1.0], np.float32)


def test_second_split_of_mnli_is_named_as_in_run_glue():
    labels = np.array([0, 1, 2, 0], np.int32)
    split = Texts(["x"] * 4, ["y"] * 4, labels)
    logits = {"dev_matched": np.eye(3)[labels], "dev_mismatched": np.eye(3)[[0, 0, 0, 0]]}
    splits = dict.fromkeys(logits, split)
    assert score_splits(GLUE_TASKS["mnli"], logits, splits) == {"accuracy": 1.0, "accuracy_mm": 0.5}
    logits["dev_mismatched"][1, 2] = np.inf
    computed = score_splits(GLUE_TASKS["mnli"], logits, splits)
    assert computed["accuracy"] == 1.0
    assert np.isnan(computed["accuracy_mm"])
    assert count_not_finite(logits["dev_mismatched"]) == 1


@pytest.mark.filterwarnings("error")
def test_scores_that_are_not_finite_have_no_correlation():
    split = Texts(["x"] * 3, ["y"] * 3, np.array([0.0, 1.0, 2.0], np.float32))
    logits = {"dev": np.array([[0.5], [np.nan], [1.5]], np.float32)}
    assert np.isnan([*score_splits(GLUE_TASKS["stsb"], logits, {"dev": split}).values()]).all()

"""Every figure of a split, against scikit-learn and the formulas."""

import numpy as np
import pytest

from increlora_jax.tasks.details import describe_split
from increlora_jax.tasks.labelled_texts import Texts, TextTask

CLASSES = TextTask("text", ("text",), ("a", "b", "c", "d"), ("accuracy",))


def test_classes_agree_with_scikit_learn_and_scipy():
    from scipy.special import log_softmax
    from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

    draw = np.random.default_rng(0)
    logits = draw.normal(size=(60, 4)).astype(np.float32) * 3
    logits[:, 3] = -9  # neither said nor true: of no account in the mean
    labels = draw.integers(0, 3, 60).astype(np.int32)
    told = describe_split(CLASSES, logits, Texts(["x"] * 60, None, labels))
    said = logits.argmax(-1)
    assert told["rows"] == 60
    assert told["accuracy"] == pytest.approx((said == labels).mean())
    assert told["macro_f1"] == pytest.approx(f1_score(labels, said, average="macro"))
    assert told["loss"] == pytest.approx(-log_softmax(logits, -1)[np.arange(60), labels].mean())
    expected = confusion_matrix(labels, said, labels=range(4))
    assert told["confusion"] == {"labels": list("abcd"), "counts": expected.tolist()}
    columns = precision_recall_fscore_support(labels, said, labels=range(4), zero_division=0)
    for index, name in enumerate("abcd"):
        own = told["per_class"][name]
        for key, values in zip(("precision", "recall", "f1", "support"), columns, strict=True):
            assert own[key] == pytest.approx(values[index])


def test_scores_are_compared_in_float64():
    task = TextTask("text", ("text",), None, ("pearson", "spearmanr"))
    labels = np.array([1.0, 2.0, 4.0], np.float32)
    split = Texts(["x"] * 3, None, labels)
    told = describe_split(task, np.array([[1.0], [2.5], [3.0]], np.float32), split)
    assert told["mse"] == told["loss"] == pytest.approx((0.25 + 1) / 3)
    assert told["mae"] == pytest.approx(0.5)
    assert told["spearmanr"] == pytest.approx(1.0)
    assert told["rows"] == 3

"""Weights of classes in the training loss."""

import json

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from increlora_jax import train
from increlora_jax.config import TaskConfig
from increlora_jax.errors import InputError
from increlora_jax.tasks.class_weights import balance, describe_weights
from increlora_jax.tasks.classification import sequence_loss
from increlora_jax.tasks.labelled_texts import Texts, TextTask
from increlora_jax.tasks.registry import load_task
from increlora_jax.weights.tokenizer import load_tokenizer
from tests.conftest import WORDS
from tests.tasks.test_classification import BATCH, LOGITS, Recorder
from tests.tiny import without

TASK = TextTask("text", ("text",), ("bad", "fair", "good"), ("accuracy",))


def texts_of(labels):
    return Texts(["a"] * len(labels), None, np.array(labels, np.int32), "train.tsv")


@pytest.fixture
def three_classes(tmp_path):
    """A folder whose classes have 40, 8 and 2 rows."""
    folder, draw = tmp_path / "three", np.random.default_rng(1)
    folder.mkdir()
    for split in ("train", "dev"):
        labels = ["fair"] * 40 + ["good"] * 8 + ["bad"] * 2
        rows = [f"{' '.join(draw.choice(WORDS, size=4))}\t{label}" for label in labels]
        (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    return folder


def test_balanced_weights_are_those_of_scikit_learn():
    labels = [1] * 40 + [2] * 8 + [0] * 2
    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels))
    np.testing.assert_allclose(balance(TASK, texts_of(labels)), expected, rtol=1e-6)


def test_a_class_without_rows_weighs_nothing_and_is_not_counted():
    np.testing.assert_allclose(balance(TASK, texts_of([1, 1, 1, 2])), [0, 4 / 6, 2])


def test_the_weights_are_said_by_name():
    said = describe_weights(TASK, np.float32([1, 0.25, 2]))
    assert said == "class weights of the training loss: 'bad' 1, 'fair' 0.25, 'good' 2"


def test_scores_have_no_classes():
    task = TextTask("stsb", ("a", "b"), None, ("pearson",))
    with pytest.raises(InputError, match=r"--class-weights balanced is for classes.*train\.tsv"):
        balance(task, texts_of([1]))


def test_the_loss_is_the_weighted_mean_as_in_pytorch():
    """The sum of w_y · loss over the sum of w_y; padding of weight 0 has no part."""
    labels, own = np.array([2, 1, 0]), np.float32([3.0, 0.5, 8.0])
    batch = BATCH | {"labels": labels, "weight": np.float32([1, 1, 0]), "class_weight": own}
    total, weight = sequence_loss(Recorder(LOGITS), batch, is_regression=False)
    logits = LOGITS.astype(np.float64)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(3), labels]
    np.testing.assert_allclose(total / weight, losses[:2] @ own[:2] / own[:2].sum(), rtol=1e-6)


def test_only_the_training_split_is_weighted(three_classes, tiny_model):
    config = TaskConfig(task="text", data_dir=str(three_classes), class_weights="balanced")
    data, tokenizer = load_task(config), load_tokenizer(tiny_model)
    weights = balance(TASK, data.train)
    encoded = data.kind.encode(data.train, tokenizer, 16, "train")
    np.testing.assert_array_equal(encoded.fixed["class_weight"], weights[data.train.labels])
    assert "class_weight" not in data.kind.encode(data.dev["dev"], tokenizer, 16, "dev").fixed


def test_a_run_says_its_weights_and_has_macro_f1(three_classes, short_run, tmp_path, capsys):
    words = without(without(short_run, "--task"), "--data-dir")
    words += ["--task", "text", "--data-dir", str(three_classes), "--no-growth"]
    losses = {}
    for name in ("none", "balanced"):
        folder = tmp_path / name
        train.main([*words, "--class-weights", name, "--output-dir", str(folder)])
        first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[1])
        losses[name] = first["loss"]
        metrics = json.loads((folder / "results.json").read_text())["metrics"]
        assert list(metrics) == ["accuracy", "macro_f1"]
    said = capsys.readouterr().err
    assert said.count("class weights of the training loss: 'bad' 8.33, 'fair' 0.417") == 1
    assert losses["none"] != pytest.approx(losses["balanced"], rel=1e-3)

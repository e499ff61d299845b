import numpy as np
import pytest

from increlora_jax.errors import InputError
from increlora_jax.tasks.text import TEXT_COLUMNS, load_text


def load(tmp_path, labels, dev_labels=None, problem_type="auto", columns=("text",)):
    for split, values in (("train", labels), ("dev", dev_labels or labels[:1])):
        rows = [(*columns, "label"), *((*("x" for _ in columns), value) for value in values)]
        content = "\n".join("\t".join(row) for row in rows)
        (tmp_path / f"{split}.tsv").write_text(content)
    return load_text(tmp_path, problem_type)


@pytest.mark.parametrize("columns", TEXT_COLUMNS)
def test_texts_are_found_under_every_accepted_name(tmp_path, columns):
    data = load(tmp_path, ["a", "b"], columns=columns)
    assert data.task.columns == columns
    assert (data.train.second is not None) == (len(columns) == 2)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["pos", "neg", "pos"], ("neg", "pos")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["10", "9", "b"], ("10", "9", "b")),
        (["1", "1" * 5000], ("1", "1" * 5000)),
    ],
)
def test_labels_are_sorted_by_number_if_all_are_integers(tmp_path, labels, expected):
    data = load(tmp_path, labels)
    assert data.task.labels == expected
    assert data.task.metrics == ("accuracy", "macro_f1")[: len(expected) - 1]
    assert data.train.labels.tolist() == [expected.index(label) for label in labels]


@pytest.mark.parametrize(
    ("labels", "problem_type", "is_regression"),
    [
        (["1", "2", "3"], "auto", False),
        (["1", "2.0", "3"], "auto", True),
        (["1e-1", "2"], "auto", True),
        (["1.5", "good"], "auto", False),
        (["1", "2"], "regression", True),
        (["1.5", "2.5"], "single_label_classification", False),
    ],
)
def test_problem_type_is_told_from_the_labels_or_given(
    tmp_path, labels, problem_type, is_regression
):
    data = load(tmp_path, labels, problem_type=problem_type)
    assert data.task.is_regression == is_regression
    assert data.train.labels.dtype == (np.float32 if is_regression else np.int32)
    if is_regression:
        assert data.task.metrics == ("pearson", "spearmanr")
        assert data.train.labels.tolist() == [np.float32(label) for label in labels]


def test_notes_say_what_was_told_from_the_file(tmp_path):
    assert load(tmp_path, ["a", "b"], columns=("text1", "text2")).notes == (
        "classification into 2 labels of text1 and text2, told from train.tsv; "
        "--problem-type overrides",
        "train.tsv: 2 rows of 3 lines; labels 'a' 1, 'b' 1",
        "dev.tsv: 1 row of 2 lines; labels 'a' 1, 'b' 0",
    )


@pytest.mark.parametrize(
    ("labels", "dev_labels", "problem_type", "problem"),
    [
        (["a", "b"], ["b", "c"], "auto", r"dev.tsv:3: label 'c', and the known ones are 'a', 'b'"),
        (["a", "a"], ["a"], "auto", r"train.tsv: every row has the label 'a'"),
        (["a", ""], ["a"], "auto", r"train.tsv:3: the label is empty"),
        (["1.5", "b"], ["1"], "regression", r"train.tsv:3: label 'b': not a finite number"),
        (["1.5", "2"], ["nan"], "auto", r"dev.tsv:2: label 'nan': not a finite number"),
    ],
)
def test_labels_that_cannot_be_learnt_are_named(
    tmp_path, labels, dev_labels, problem_type, problem
):
    with pytest.raises(InputError, match=problem):
        load(tmp_path, labels, dev_labels, problem_type)


def test_dev_must_have_the_columns_that_train_was_read_by(tmp_path):
    (tmp_path / "train.tsv").write_text("text1\ttext2\tlabel\na\tb\t1\na\tb\t0\n")
    (tmp_path / "dev.tsv").write_text("text\tlabel\na\t1\n")
    with pytest.raises(
        InputError, match=r"dev.tsv:1: .*the needed ones are 'text1', 'text2', 'label"
    ):
        load_text(tmp_path)


def test_a_file_of_empty_texts_is_refused(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("text\tlabel\n\ta\n \tb\n")
    with pytest.raises(
        InputError, match=r"train.tsv: every row has an empty text \('text'\). Fill"
    ):
        load_text(tmp_path)

import numpy as np
import pytest

from increlora_jax.tasks.kind import identify
from increlora_jax.tasks.labelled_texts import Texts, TextTask


def test_task_tells_its_kind_and_width():
    classes = TextTask("c", ("text",), ("a", "b", "c"), ("accuracy",))
    scores = TextTask("r", ("first", "second"), None, ("pearson",))
    assert (classes.is_regression, classes.is_pair, classes.num_labels) == (False, False, 3)
    assert (scores.is_regression, scores.is_pair, scores.num_labels) == (True, True, 1)


def test_example_with_either_text_empty_is_counted_once():
    labels = np.zeros(4, np.int32)
    assert Texts(["a", "", " ", "\u3000"], None, labels).num_empty == 3
    assert Texts(["a", "", "b", ""], ["a", "b", "", ""], labels).num_empty == 3


def data_of(train=("x", "y"), second=None, labels=(0, 1), dev=("z",)):
    def split(texts, seconds, ids):
        return Texts(list(texts), seconds and list(seconds), np.array(ids, np.int32))

    return identify(split(train, second, labels), split(dev, None, [0]))


def test_equal_data_have_one_identity():
    assert data_of() == data_of()


@pytest.mark.parametrize(
    "other",
    [
        data_of(train=("y", "x")),
        data_of(train=("x", "y ")),
        data_of(train=("xy", "")),
        data_of(labels=(1, 0)),
        data_of(second=("", "")),
        data_of(dev=("w",)),
        data_of(train=("x", "y", "z"), labels=(0, 1, 0), dev=()),
    ],
)
def test_other_texts_labels_order_or_splits_are_other_data(other):
    assert other != data_of()

import numpy as np

from increlora_jax.tasks.base import Split, Task


def test_task_tells_its_kind_and_width():
    classes = Task("c", ("text",), ("a", "b", "c"), ("accuracy",))
    scores = Task("r", ("first", "second"), None, ("pearson",))
    assert (classes.is_regression, classes.is_pair, classes.num_labels) == (False, False, 3)
    assert (scores.is_regression, scores.is_pair, scores.num_labels) == (True, True, 1)


def test_example_with_either_text_empty_is_counted_once():
    labels = np.zeros(4, np.int32)
    assert Split(["a", "", " ", "\u3000"], None, labels).num_empty == 3
    assert Split(["a", "", "b", ""], ["a", "b", "", ""], labels).num_empty == 3

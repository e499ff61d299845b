import json

import numpy as np

from increlora_jax.tasks.counts import count_split, describe_split
from increlora_jax.tasks.labelled_texts import Texts, TextTask

CLASSES = TextTask("text", ("text",), ("a", "b", "c"), ("accuracy",))
SCORES = TextTask("text", ("text",), None, ("pearson",))


def split_of(labels, kind=np.int32, **more):
    return Texts(["x"] * len(labels), None, np.array(labels, kind), "train.csv", **more)


def test_rows_lines_and_every_label_are_counted():
    split = split_of([0, 2, 2], num_lines=5)
    counts = count_split(CLASSES, split)
    labels = {"a": 1, "b": 0, "c": 2}
    assert counts == {"source": "train.csv", "rows": 3, "lines": 5, "labels": labels}
    assert json.loads(json.dumps(counts)) == counts
    assert describe_split(CLASSES, split) == (
        "train.csv: 3 rows of 5 lines; labels 'a' 1, 'b' 0, 'c' 2"
    )


def test_scores_are_told_by_range_and_mean():
    split = split_of([0, 1, 5], np.float32)
    assert describe_split(SCORES, split) == "train.csv: 3 rows; scores 0 to 5, mean 2"
    assert count_split(SCORES, split)["scores"] == {"min": 0, "max": 5, "mean": 2}


def test_a_long_list_of_labels_is_cut_in_the_note_alone():
    task = TextTask("text", ("text",), tuple(f"c{i}" for i in range(25)), ("accuracy",))
    split = split_of(list(range(25)))
    assert describe_split(task, split).endswith("'c19' 1 and 5 labels more")
    assert len(count_split(task, split)["labels"]) == 25


def test_a_split_without_labels_says_so():
    split = split_of([-1, -1], is_labelled=False)
    assert describe_split(CLASSES, split) == "train.csv: 2 rows; no labels"

from pathlib import Path

import numpy as np
import pytest

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.label_forms import is_integer, is_number
from increlora_jax.tasks.data.labels import (
    parse_classes,
    parse_scores,
    refuse_empty_labels,
)
from increlora_jax.tasks.data.layout import Layout
from increlora_jax.tasks.data.tables import Table


def table_of(*labels):
    texts = ["text"] * len(labels)
    lines = list(range(2, 2 + len(labels)))
    return Table(Path("dev.tsv"), Layout(("text", "label")), lines, (texts, list(labels)))


@pytest.mark.parametrize("text", ["3", "-1", "+2", "0.5", ".5", "5.", "1e3", "2.5E-3"])
def test_decimal_literals_are_numbers(text):
    assert is_number(text)
    assert is_integer(text) == text.lstrip("+-").isdigit()


@pytest.mark.parametrize("text", ["", "a", "nan", "inf", "1_0", " 1", "1,5", "0x1", "٣", ".", "e3"])
def test_anything_else_is_no_number(text):
    assert not is_number(text)
    assert not is_integer(text)


def test_classes_become_int32_ids():
    ids = parse_classes(table_of("no", "yes", "no"), {"no": 0, "yes": 1})
    assert ids.dtype == np.int32
    assert ids.tolist() == [0, 1, 0]


def test_unknown_label_lists_the_known_ones():
    with pytest.raises(InputError, match=r"dev.tsv:3: label 'maybe', and the known ones are 'no'"):
        parse_classes(table_of("no", "maybe"), {"no": 0, "yes": 1})


def test_scores_become_float32():
    scores = parse_scores(table_of("0", "3.8", "5.000"), (0.0, 5.0))
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, np.float32([0, 3.8, 5]))


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ("good", "label 'good': not a finite number"),
        ("nan", "not a finite number"),
        ("1e999", "not within 0 to 5"),
        ("5.001", "not within 0 to 5"),
        ("-0.1", "not within 0 to 5"),
        ("", "the label is empty"),
    ],
)
def test_bad_score_names_its_line(label, problem):
    with pytest.raises(InputError, match=rf"dev.tsv:3: .*{problem}"):
        parse_scores(table_of("1.0", label), (0.0, 5.0))


def test_score_beyond_float32_is_refused_without_a_range():
    assert parse_scores(table_of("-3e38")).tolist() == [np.float32(-3e38)]
    with pytest.raises(InputError, match=r"dev.tsv:2: label '1e39': not within"):
        parse_scores(table_of("1e39"))


def test_empty_label_names_its_line():
    refuse_empty_labels(table_of("a", "b"))
    with pytest.raises(InputError, match=r"dev.tsv:4: the label is empty"):
        refuse_empty_labels(table_of("a", "b", ""))

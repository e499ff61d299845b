import pytest

from increlora_jax.tasks.data.label_forms import (
    fold,
    has_decimal_comma,
    may_be_missing,
    strip_blanks,
)


@pytest.mark.parametrize(
    "label", ["x ", "\tx", "\u00a0x\u3000", "\u200bx\ufeff", " \u200b x", "x\r"]
)
def test_blanks_of_every_kind_go(label):
    assert strip_blanks(label) == "x"


def test_blanks_within_stay():
    assert strip_blanks(" not good\u00a0at all ") == "not good\u00a0at all"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Positive", "POSITIVE"),
        ("not good", "not\u00a0 good"),
        ("good", "go\u200bod"),
        ("\uff21\uff22", "ab"),
        ("caf\u00e9", "cafe\u0301"),
        ("stra\u00dfe", "STRASSE"),
        ("1", "1.0"),
        ("1", "01"),
        ("-1", "-1.00"),
        ("1", "\uff11"),
        ("10", "1e1"),
        ("good", "'good'"),
        ("good", "“Good”"),
    ],
)
def test_forms_of_one_label_are_alike(first, second):
    assert fold(first) == fold(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [("a", "b"), ("1", "-1"), ("1", "10"), ("1" * 400, "1" * 401), ("not_good", "not good")],
)
def test_other_labels_are_not(first, second):
    assert fold(first) != fold(second)


def test_words_for_missing_values_and_decimal_commas_are_known():
    assert all(map(may_be_missing, ["nan", "NaN", "NA", "n/a", "null", "None", "-", "?"]))
    assert not any(map(may_be_missing, ["no", "0", "neutral", "nano"]))
    assert all(map(has_decimal_comma, ["3,5", "-0,25", ",5"]))
    assert not any(map(has_decimal_comma, ["3.5", "3", "a,b", "3,", "1,2,3"]))

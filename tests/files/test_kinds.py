from typing import Any, Literal

import pytest

from increlora_jax.errors import InputError
from increlora_jax.files.kinds import check_keys, describe, is_of_kind

NUMBERS: Any = dict[str, int]


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        ("a", str, True), (1, str, False), (None, str, False),
        (1, int, True), (True, int, False), (1.0, int, False),
        (1, float, True), (1.5, float, True), (True, float, False), ("1", float, False),
        (True, bool, True), (1, bool, False),
        (None, str | None, True), ("a", str | None, True), (1, str | None, False),
        ("x", Literal["x", "y"], True), ("z", Literal["x", "y"], False), ([], Literal["x"], False),
        ([1, 2], list[int], True), ([], list[int], True), ([1, "2"], list[int], False),
        ((1,), list[int], False), ({}, list[int], False),
        ({"a": 1}, NUMBERS, True), ({"a": "b"}, NUMBERS, False), ([], NUMBERS, False),
        ({"a": {"b": 1}}, dict[str, dict[str, int]], True),
        ({"a": {"b": None}}, dict[str, dict[str, int]], False),
        ({"12": 1}, dict[int, int], True), ({"x": 1}, dict[int, int], False),
        ({"1" * 5000: 1}, dict[int, int], False), ({"1": "x"}, dict[int, int], False),
        (None, list[str] | None, True), (["a"], list[str] | None, True),
    ],
)  # fmt: skip
def test_a_value_is_of_a_kind_or_not(value, kind, fits):
    assert is_of_kind(value, kind) is fits


def test_keys_are_those_named_and_of_their_kinds():
    kinds = {"n": int, "names": list[str] | None}
    check_keys("f", {"names": None, "n": 1}, kinds)
    check_keys("f", {"names": ["a"], "n": 1, "more": 2}, kinds, may_have_others=True)
    for content, message in {
        "f: 'n' is missing": {"names": None},
        "f: unknown key 'more'; the keys are n, names": {"n": 1, "names": None, "more": 2},
        "f: n is 'x' where int is needed": {"n": "x", "names": None},
        r"f: names is \[1\] where list\[str\] | None is needed": {"n": 1, "names": [1]},
    }.items():
        with pytest.raises(InputError, match=content):
            check_keys("f", message, kinds)


def test_long_values_are_cut():
    with pytest.raises(InputError) as caught:
        check_keys("f", {"n": "x" * 10_000}, {"n": int})
    assert len(str(caught.value)) < 200


def test_kinds_read_as_people_write_them():
    assert [describe(k) for k in (int, list[str], str | None)] == ["int", "list[str]", "str | None"]

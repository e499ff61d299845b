import json

import pytest

from increlora_jax.errors import InputError
from increlora_jax.files.json_object import MAX_DEPTH, read_json_object


@pytest.fixture
def write(tmp_path):
    def write_file(content):
        path = tmp_path / "it.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def test_an_object_is_read_as_it_was_written(write):
    content = {"a": [1, 2.5, None, True, "ü"], "b": {"c": {}}}
    assert read_json_object(write(json.dumps(content))) == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"it.json:1: not valid JSON \(Expecting value\)"),
        ('{"a": 1,\n\nb}', r"it.json:3: not valid JSON"),
        (b'{"a":\n"\xff"}', r"it.json:2: not UTF-8"),
        ("[1]", "holds no JSON object"),
        ("null", "holds no JSON object"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' appears twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ('{"a": 1e999}', "1e999 is not a JSON number"),
        ('{"a": ' + "1" * 5000 + "}", "not valid JSON"),
        ("[" * 1_000_000, "it.json: not valid JSON"),
        ('{"a":' * 100_000, "it.json: not valid JSON"),
        ('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1), "nested more than 32 deep"),
    ],
)
def test_anything_else_is_refused_by_file_and_line(write, content, message):
    with pytest.raises(InputError, match=message):
        read_json_object(write(content))


def test_what_is_just_deep_enough_is_read(write):
    depth = MAX_DEPTH - 1
    assert read_json_object(write('{"a":' * depth + "1" + "}" * depth))["a"]


def test_a_file_over_the_bound_is_refused(write):
    path = write('{"a": 1}')
    assert read_json_object(path, max_bytes=8) == {"a": 1}
    with pytest.raises(InputError, match="more than the 7 bytes"):
        read_json_object(path, max_bytes=7)


def test_numbers_that_are_not_finite_pass_where_allowed(write):
    found = read_json_object(write('{"a": NaN, "b": 1e999}'), allow_nan=True)
    assert found["a"] != found["a"]
    assert found["b"] == float("inf")

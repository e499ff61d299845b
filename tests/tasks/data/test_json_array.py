import json

import pytest

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.json_array import read_json_file
from increlora_jax.tasks.data.layout import Layout
from increlora_jax.tasks.data.lines import Lines
from increlora_jax.tasks.data.tables import read_table

ROWS = [{"text": "a\n[", "label": 1}, {"text": "}", "label": [{"b": None}]}, {}]


def read(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_text(content, encoding="utf-8")
    return list(read_json_file(Lines(path)))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda rows: rows,
        lambda rows: {"data": rows},
        lambda rows: {"version": [1, "data"], "data": rows, "more": {"data": [{}]}},
    ],
)
def test_an_array_is_read_alone_or_as_data(tmp_path, wrap, indent):
    content = json.dumps(wrap(ROWS), indent=indent)
    assert [row for _, row in read(tmp_path, f"\n {content} \n")] == ROWS


def test_rows_have_the_lines_that_they_start_on(tmp_path):
    assert [n for n, _ in read(tmp_path, '[\n{"a":\n1}, {"a": 2},\n\n{"a": 3}\n]')] == [2, 3, 5]


def test_a_file_of_an_object_a_line_is_read_as_such(tmp_path):
    assert read(tmp_path, '{"a": 1}\n\n{"data": 2}\n') == [
        (1, {"a": 1}),
        (2, None),
        (3, {"data": 2}),
    ]


def test_nothing_has_no_rows(tmp_path):
    for content in ("", " \n", "[]", '{"data": []}'):
        assert read(tmp_path, content) == []


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ('[{"a": 1},\n{"a": }]', 2, "Expecting value"),
        ('[{"a": 1}\n{"a": 2}]', 2, "a comma or ] is needed here"),
        ('[{"a": 1},\n]', 2, "Expecting value"),
        ('[{"a": 1},', 1, "Expecting value"),
        ('[\n{"a": 1}', 2, "a comma or ] is needed here"),
        ('[{"a": 1}]\n[]', 2, "nothing may follow"),
        ('[{"a": 1},\n3]', 2, "a JSON int where an object is needed"),
        ('[{"a": NaN}]', 1, "NaN is not JSON"),
        ("[" * 100_000, 1, "not valid JSON"),
        ('{"data": [{"a": 1}]\n', 1, "not valid JSON"),
        ('{"data": [{"a": 1}]} x', 1, "nothing may follow"),
        ("3", 1, "a JSON int where an object is needed"),
        ("good,1\n", 1, "not valid JSON"),
    ],
)
def test_errors_name_file_and_line(tmp_path, content, line, problem):
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'data.json'}:{line}: ")
    assert problem in str(caught.value)


TWICE = '{"text": "good", "label": "pos", "label": "neg"}'


@pytest.mark.parametrize(
    ("name", "content", "line", "key"),
    [
        ("x.jsonl", '{"text": "a", "label": "b"}\n' + TWICE, 2, "label"),
        ("x.json", TWICE + "\n", 1, "label"),
        ("x.json", f"[\n{TWICE}\n]", 2, "label"),
        ("x.json", f'{{"data": [\n{TWICE}\n]}}', 2, "label"),
        ("x.json", f'{{"by": {TWICE},\n"data": [{{"text": "a", "label": "b"}}]}}', 1, "label"),
        ("x.json", '{"data": [{"text": "a", "label": "b"}],\n"data": []}', 1, "data"),
        ("x.json", '{"data": 1,\n"data": [{"text": "a", "label": "b"}]}', 2, "data"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, name, content, line, key):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name}:{line}: more than one key is called '{key}'"):
        read_table(tmp_path / name, [Layout(("text", "label"))])

import csv

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.lines import Lines
from increlora_jax.tasks.data.records import (
    quote,
    quote_all,
    read_csv_records,
    read_json_records,
    read_tsv_records,
)

READERS = {".tsv": read_tsv_records, ".csv": read_csv_records, ".jsonl": read_json_records}


def read(tmp_path, suffix, content):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(content)
    return list(READERS[suffix](Lines(path)))


def test_tsv_splits_at_tab_and_newline_alone(tmp_path):
    # Unbalanced quotes, a vertical tab, a lone CR, NEL and a line separator are all text.
    row = 'a "b\x0bc\rd\x85e\u2028f'
    assert read(tmp_path, ".tsv", f"{row}\t1\n\t\nlast\t2".encode()) == [
        (1, [row, "1"]),
        (2, ["", ""]),
        (3, ["last", "2"]),
    ]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_bom_and_crlf_leave_no_trace(tmp_path, suffix):
    lines = {
        ".tsv": b"a\tb\n1\t2\n\n",
        ".csv": b"a,b\n1,2\n\n",
        ".jsonl": b'{"a": 1}\n{"a": 2}\n\n',
    }[suffix]
    windows = b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n")
    assert read(tmp_path, suffix, windows) == read(tmp_path, suffix, lines)
    assert [line for line, _ in read(tmp_path, suffix, lines)] == [1, 2, 3]


def test_csv_line_numbers_count_the_lines_inside_quoted_fields(tmp_path):
    records = read(tmp_path, ".csv", b'a,b\n"one\n""two""\n",1\nthree,2\n')
    assert records == [(1, ["a", "b"]), (2, ['one\n"two"\n', "1"]), (5, ["three", "2"])]


def test_csv_field_size_limit_is_lifted_for_the_read_alone(tmp_path):
    csv.field_size_limit(1000)
    long = "x" * 1_000_000
    assert read(tmp_path, ".csv", f"{long},1\n".encode()) == [(1, [long, "1"])]
    assert csv.field_size_limit(131_072) == 1000


@pytest.mark.parametrize(
    ("suffix", "content", "line", "problem"),
    [
        (".tsv", b"a\tb\nx\t1\ncaf\xe9\t0\n", 3, "byte 4 of this line (0xe9) is not UTF-8"),
        (".tsv", b"\xef\xbb\xbfab\xff\n", 1, "byte 3 of this line (0xff) is not UTF-8"),
        (".tsv", "a\tb\n".encode("utf-16"), 1, "not UTF-8"),
        (".tsv", b"a\tb\nx\x00\t1\n", 2, "byte 2 of this line is a NUL"),
        (".csv", b"a,b\n\xff,1\n", 2, "not UTF-8"),
        (".csv", b'a,b\nx,1\n"left open,0\ny,1\n', 3, "not valid CSV"),
        (".csv", b'a,b\n"x"y,1\n', 2, "not valid CSV"),
        (".jsonl", b'{"a": 1}\n{"a": }\n', 2, "not valid JSON"),
        (".jsonl", b'{"a": 1}\n[1, 2]\n', 2, "a JSON list where an object is needed"),
        (".jsonl", b'{"a": NaN}\n', 1, "NaN is not JSON"),
        (".jsonl", b"[" * 100_000 + b"\n", 1, "not valid JSON"),
        (".jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", 1, "not valid JSON"),
    ],
)
def test_error_names_file_and_line(tmp_path, suffix, content, line, problem):
    with pytest.raises(InputError) as caught:
        read(tmp_path, suffix, content)
    assert str(caught.value).startswith(f"{tmp_path / 'data'}{suffix}:{line}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize("suffix", READERS)
def test_what_is_no_readable_file_is_an_input_error(tmp_path, suffix):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "folder", tmp_path / "file" / "inside"):
        with pytest.raises(InputError, match="cannot be read"):
            list(READERS[suffix](Lines(path)))


def test_quoted_values_are_escaped_and_cut():
    assert quote("a\tb") == "'a\\tb'"
    assert quote("\ud800").isascii()
    assert len(quote("x" * 1_000_000)) < 100
    assert quote_all(["a", "b"]) == "'a', 'b'"
    assert quote_all(["a"] * 25).endswith("'a' and 5 more")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text('ab,"\t\r\n{}:[]1', max_size=60).map(str.encode))
@pytest.mark.parametrize("suffix", READERS)
def test_any_bytes_give_records_or_an_input_error(tmp_path, suffix, content):
    try:
        records = read(tmp_path, suffix, content)
    except InputError:
        return
    lines = [line for line, _ in records]
    assert lines == sorted(set(lines))
    assert all(1 <= line <= content.count(b"\n") + 1 for line in lines)

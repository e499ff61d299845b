import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.label_forms import strip_blanks
from increlora_jax.tasks.data.layout import Layout
from increlora_jax.tasks.data.tables import read_table

SINGLE = Layout(("sentence", "label"))
PAIR = Layout(("sentence1", "sentence2", "label"))
HEADLESS = Layout(("sentence", "label"), headless=("source", "label", "sentence"))


def read(tmp_path, content, *layouts, suffix=".tsv"):
    path = tmp_path / f"data{suffix}"
    path.write_text(content, newline="")
    return read_table(path, layouts or (SINGLE,))


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".tsv", "label\tid\tsentence\n1\t7\tgood\n0\t8\tbad\n"),
        (".csv", 'label,id,sentence\n1,7,"good"\n0,8,bad\n'),
        (".jsonl", '{"label": 1, "sentence": "good"}\n{"sentence": "bad", "label": "0", "id": []}'),
    ],
)
def test_columns_are_taken_by_name_in_the_order_of_the_layout(tmp_path, suffix, content):
    table = read(tmp_path, content, suffix=suffix)
    assert table.columns == (["good", "bad"], ["1", "0"])
    assert table.locate(1).endswith(f"data{suffix}:{2 if suffix == '.jsonl' else 3}")


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_csv_of_another_separator_is_read_if_its_header_leaves_no_doubt(tmp_path, delimiter, quote):
    header, row = (
        delimiter.join(f"{quote}{value}{quote}" for value in values)
        for values in (("label", "sentence"), ("1", "good, very"))
    )
    table = read(tmp_path, f"{header}\n{row}\n", suffix=".csv")
    assert (table.columns, table.delimiter) == ((["good, very"], ["1"]), delimiter)


def test_a_comma_wins_where_the_header_has_other_separators_too(tmp_path):
    table = read(tmp_path, "sentence,label,a;b\nx;y,1,z\n", suffix=".csv")
    assert table.columns == (["x;y"], ["1"])


def test_quote_within_a_csv_field_is_text(tmp_path):
    table = read(tmp_path, 'sentence,label\na 5" nail and a 6" one,1\n', suffix=".csv")
    assert table.columns[0] == ['a 5" nail and a 6" one']


def test_json_boolean_is_a_label_and_no_text(tmp_path):
    content = '[{"sentence": "a", "label": true}, {"sentence": "b", "label": false}]'
    table = read(tmp_path, content, suffix=".json")
    assert table.columns[1] == ["true", "false"]
    with pytest.raises(InputError, match="'sentence' is 'True'"):
        read(tmp_path, '[{"sentence": true, "label": 1}]', suffix=".json")


@pytest.mark.parametrize("content", ["sentence,label\ra,1\rb,0", "sentence,label\ra,1\rb,0\r\n"])
def test_lines_that_end_in_a_carriage_return_alone_are_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"data.csv:1: the lines of this file end in a carriage"):
        read(tmp_path, content, suffix=".csv")
    with pytest.raises(InputError, match=r"data.tsv:1: .*carriage return alone"):
        read(tmp_path, content.replace(",", "\t"))


def test_first_layout_that_fits_is_the_one_read(tmp_path):
    content = "sentence1\tsentence2\tsentence\tlabel\na\tb\tc\t1\n"
    assert read(tmp_path, content, PAIR, SINGLE).columns == (["a"], ["b"], ["1"])
    assert read(tmp_path, content, SINGLE, PAIR).columns == (["c"], ["1"])


def test_file_without_a_header_keeps_its_first_row(tmp_path):
    table = read(tmp_path, "gj04\t1\tOne.\nbc01\t0\tTwo.\n", SINGLE, HEADLESS)
    assert (table.columns, table.lines) == ((["One.", "Two."], ["1", "0"]), [1, 2])


def test_misspelt_header_is_not_taken_for_a_row_of_data(tmp_path):
    with pytest.raises(InputError, match="columns here are 'id', 'label', 'sentense'"):
        read(tmp_path, "id\tlabel\tsentense\nx\t1\ty\n", SINGLE, HEADLESS)


def test_broken_rows_are_skipped_and_counted_only_where_the_layout_says_so(tmp_path):
    content = "sentence\tlabel\na\t1\nb\nrest\t0\tx\nc\t0\n"
    table = read(tmp_path, content, Layout(SINGLE.columns, skips_broken_rows=True))
    assert (table.columns[0], table.lines, table.broken_lines) == (["a", "c"], [2, 5], [3, 4])
    with pytest.raises(InputError, match=r"data.tsv:3: this row has 1 fields and the header 2"):
        read(tmp_path, content)


def test_one_megabyte_line_is_read_whole(tmp_path):
    text = "word " * 200_000
    assert read(tmp_path, f"sentence\tlabel\n{text}\t1\n").columns[0] == [text]


def test_blank_lines_may_end_a_file(tmp_path):
    assert read(tmp_path, "sentence\tlabel\na\t1\n\n\r\n\n").lines == [2]


@pytest.mark.parametrize(
    ("suffix", "content", "where", "problem"),
    [
        (".tsv", "", ":1", "is empty"),
        (".tsv", "\ufeff", ":1", "nothing where the header should be"),
        (".jsonl", "\n\n", ":1", "is empty"),
        (".tsv", "\n", ":1", "nothing where the header should be"),
        (".tsv", "sentence\tlabel\n", "", "no rows of data"),
        (".csv", "sentence,label\n\n", "", "no rows of data"),
        (".tsv", "text\tlabel\na\t1\n", ":1", "'text', 'label', the needed ones are 'sentence'"),
        (".tsv", "sentence,label\na,1\n", ":1", "columns here are 'sentence,label'"),
        (".tsv", "sentence\tlabel\tlabel\na\t1\t0\n", ":1", "more than one column is called"),
        (".tsv", "sentence\tlabel\na\tb\t1\n", ":2", "3 fields and the header 2"),
        (".csv", "sentence,label\na,b,1\n", ":2", "missing or extra comma"),
        (".tsv", "sentence\tlabel\na\t1\n\nb\t0\n", ":3", "blank line with rows after it"),
        (".csv", "sentence,label\na,1\n\n\nb,0\n", ":3", "blank line with rows after it"),
        (".jsonl", '{"sentence": "a", "label": 1}\n{}\n', ":2", "the needed ones are 'sentence'"),
        (".jsonl", '{"sentence": null, "label": 1}\n', ":1", "'sentence' is 'None'"),
        (".jsonl", '{"sentence": true, "label": true}\n', ":1", "'sentence' is 'True'"),
        (".jsonl", '{"sentence": "\\ud800", "label": 1}\n', ":1", "half a character"),
        (
            ".txt",
            "sentence\tlabel\n",
            "",
            "unknown kind of file. Give one of .tsv, .csv, .jsonl, .json, .parquet",
        ),
    ],
)
def test_error_names_file_line_and_what_is_wrong(tmp_path, suffix, content, where, problem):
    with pytest.raises(InputError) as caught:
        read(tmp_path, content, suffix=suffix)
    assert str(caught.value).startswith(f"{tmp_path / 'data'}{suffix}{where}: ")
    assert problem in str(caught.value)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\t"))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXT, TEXT.filter(bool)), min_size=1, max_size=5))
def test_what_is_written_is_what_is_read(tmp_path, rows):
    texts, labels = (list(column) for column in zip(*rows, strict=True))
    tsv = "".join(f"{text}\t{label}\n" for text, label in [("sentence", "label"), *rows])
    objects = [{"sentence": text, "label": label} for text, label in rows]
    jsonl = "\n".join(json.dumps(record) for record in objects)
    (tmp_path / "data.tsv").write_text(tsv, encoding="utf-8", newline="")
    (tmp_path / "data.jsonl").write_text(jsonl, encoding="utf-8", newline="")
    for name in ("data.tsv", "data.jsonl"):
        assert read_table(tmp_path / name, [SINGLE]).columns == (
            texts,
            [strip_blanks(label) for label in labels],
        )

import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.layout import Layout
from increlora_jax.tasks.data.tables import read_table

LAYOUT = Layout(("text", "label"))


def write(tmp_path, **columns):
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table(columns), path, row_group_size=2)
    return path


@pytest.mark.parametrize(
    ("labels", "texts"),
    [
        ([1, 0, 1], ["1", "0", "1"]),
        ([True, False, True], ["true", "false", "true"]),
        ([0.5, 1.0, 2.0], ["0.5", "1.0", "2.0"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    ],
)
def test_columns_are_read_as_those_of_json(tmp_path, labels, texts):
    table = read_table(write(tmp_path, id=[7, 8, 9], label=labels, text=["x", "y", ""]), [LAYOUT])
    assert table.columns == (["x", "y", ""], texts)
    assert (table.unread, table.num_lines, table.lines) == (("id",), None, [1, 2, 3])


def test_a_missing_value_is_named_by_its_row(tmp_path):
    with pytest.raises(InputError, match=r"train.parquet: row 2: 'label' is 'None'"):
        read_table(write(tmp_path, text=["a", "b"], label=["x", None]), [LAYOUT])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"text,label\na,1\n"])
def test_what_is_no_parquet_is_an_input_error(tmp_path, content):
    path = tmp_path / "train.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"train.parquet: cannot be read \(.+\)"):
        read_table(path, [LAYOUT])


def test_without_pyarrow_it_is_said_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path, text=["a"], label=["x"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install pyarrow, or save the file as .jsonl"):
        read_table(path, [LAYOUT])


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "train.parquet"
    names = ["text", "label", "label"]
    parquet.write_table(pa.table([["a"], ["x"], ["y"]], names=names), path)
    with pytest.raises(InputError, match=r"train.parquet: more than one column is called 'label'"):
        read_table(path, [LAYOUT])

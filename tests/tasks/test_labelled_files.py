import pytest

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.layout import Layout
from increlora_jax.tasks.labelled_files import load_folder
from increlora_jax.tasks.labelled_texts import TextTask

TASK = TextTask("demo", ("a", "b"), ("no", "yes"), ("accuracy",))
LAYOUTS = [Layout(("a", "b", "label"), skips_broken_rows=True)]


def test_folder_named_like_a_file_is_refused(tmp_path):
    (tmp_path / "train.tsv").mkdir()
    (tmp_path / "dev.tsv").mkdir()
    with pytest.raises(InputError, match=r"train.tsv: cannot be read \(Is a directory\)"):
        load_folder(TASK, tmp_path, LAYOUTS)


def test_names_and_ids_are_both_labels(tmp_path):
    (tmp_path / "train.tsv").write_text("a\tb\tlabel\nx\ty\tyes\nz\tw\t0\n")
    (tmp_path / "dev.tsv").write_text("label\tb\ta\n1\ty\tx\n")
    data = load_folder(TASK, tmp_path, LAYOUTS)
    assert data.train.labels.tolist() == [1, 0]
    assert (data.dev["dev"].first, data.dev["dev"].second) == (["x"], ["y"])
    assert data.notes == (
        "train.tsv: 2 rows of 3 lines; labels 'no' 1, 'yes' 1",
        "dev.tsv: 1 row of 2 lines; labels 'no' 0, 'yes' 1",
    )


def test_columns_that_are_not_read_are_named_once(tmp_path):
    (tmp_path / "train.tsv").write_text("a\tb\tc\tlabel\tid\nx\ty\tz\tyes\t1\n")
    (tmp_path / "dev.tsv").write_text("a\tb\tc\tid\tlabel\nx\ty\tz\t1\tno\n")
    notes = load_folder(TASK, tmp_path, LAYOUTS).notes
    assert notes[-1] == "columns not read in train.tsv and dev.tsv: 'c', 'id'"
    (tmp_path / "dev.tsv").unlink()
    (tmp_path / "dev.jsonl").write_text('{"a": "x", "b": "y", "label": 1, "why": []}\n')
    assert load_folder(TASK, tmp_path, LAYOUTS).notes[-2:] == (
        "columns not read in train.tsv: 'c', 'id'",
        "columns not read in dev.jsonl: 'why'",
    )


def test_rows_of_several_lines_and_padded_labels_are_counted(tmp_path):
    (tmp_path / "train.csv").write_text('a;b;label\n"x\nz";y;yes \nx;y;no\n')
    (tmp_path / "dev.csv").write_text("a,b,label\nx,y,\u00a0no\n", encoding="utf-8")
    data = load_folder(TASK, tmp_path, LAYOUTS)
    assert (data.train.num_lines, data.train.labels.tolist()) == (4, [1, 0])
    assert data.notes == (
        "train.csv: 2 rows of 4 lines; labels 'no' 1, 'yes' 1",
        "train.csv is read with a semicolon between its columns",
        "1 row with line breaks within quotes in train.csv; the first on line 2",
        "1 row with blanks around the label in train.csv, which were taken away; "
        "the first on line 2",
        "dev.csv: 1 row of 2 lines; labels 'no' 1, 'yes' 0",
        "1 row with blanks around the label in dev.csv, which were taken away; the first on line 2",
    )


def test_quotes_as_of_csv_are_noted_in_a_file_of_tabs(tmp_path):
    rows = ['"He said ""hi"""\ty\tyes', '"plain"\ty\t"no"', '"Hi," he said "."\ty\tno']
    (tmp_path / "train.tsv").write_text("\n".join(["a\tb\tlabel", rows[0], rows[2]]))
    (tmp_path / "dev.tsv").write_text("a\tb\tlabel\nx\ty\tyes\n")
    notes = load_folder(TASK, tmp_path, LAYOUTS).notes
    assert [note for note in notes if "quotes" in note] == [
        "1 row with quotes around a field in train.tsv, read as text; if they were written as "
        "those of CSV, end the file's name in .csv; the first on line 2"
    ]
    (tmp_path / "train.tsv").write_text("\n".join(["a\tb\tlabel", rows[1]]))
    with pytest.raises(InputError, match=r"train.tsv:2: label '.no.'"):
        load_folder(TASK, tmp_path, LAYOUTS)


def test_oddities_are_read_and_counted(tmp_path):
    (tmp_path / "train.tsv").write_text("a\tb\tlabel\n\ty\t1\nx\t \t0\nx\ty\t1\n")
    (tmp_path / "dev.tsv").write_text("a\tb\tlabel\nx\ny\t1\nx\ty\t1\n")
    data = load_folder(TASK, tmp_path, LAYOUTS)
    assert len(data.train) == 3
    assert len(data.dev["dev"]) == 1
    assert data.notes == (
        "train.tsv: 3 rows of 4 lines; labels 'no' 1, 'yes' 2",
        "2 rows with empty text in train.tsv",
        "dev.tsv: 1 row of 4 lines; labels 'no' 0, 'yes' 1",
        "2 rows with too few or too many fields skipped in dev.tsv, the first on line 2",
    )

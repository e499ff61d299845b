import numpy as np
import pytest

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.layout import Columns
from increlora_jax.tasks.glue import GLUE_TASKS
from increlora_jax.tasks.split import known_task, load_split

TASK = known_task("text", ["neg", "pos"])


def write(folder, name, content):
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_a_file_or_a_folders_split_is_read_with_the_labels_given(tmp_path):
    path = write(tmp_path, "test.tsv", "sentence\tlabel\na\tpos\nb\tpos\n")
    for source, split in ((path, "dev"), (str(tmp_path), "test")):
        read, notes = load_split(TASK, source, split)
        assert (read.first, read.labels.tolist()) == (["a", "b"], [1, 1])
        assert (read.is_labelled, read.source) == (True, "test.tsv")
        assert notes == ("test.tsv: 2 rows of 3 lines; labels 'neg' 0, 'pos' 2",)


def test_an_adapter_of_labels_with_blanks_around_them_still_reads_its_data(tmp_path):
    path = write(tmp_path, "test.tsv", "text\tlabel\na\tpos \nb\tneg\n")
    task = known_task("text", ["neg", "pos "])
    assert load_split(task, path)[0].labels.tolist() == [1, 0]


def test_a_label_that_is_not_the_adapters_is_named(tmp_path):
    path = write(tmp_path, "any.tsv", "text\tlabel\na\tpos\nb\tfine\n")
    with pytest.raises(InputError, match=r"any.tsv:3: label 'fine', and the known ones are 'neg'"):
        load_split(TASK, path)


@pytest.mark.parametrize("content", ["text\na\n", "text\tlabel\na\t-1\n"])
def test_labels_may_lack_only_where_none_are_needed(tmp_path, content):
    path = write(tmp_path, "any.tsv", content)
    read, _ = load_split(TASK, path, needs_labels=False)
    assert (read.first, read.labels.tolist(), read.is_labelled) == (["a"], [-1], False)
    with pytest.raises(InputError, match=r"any.tsv:\d"):
        load_split(TASK, path)


def test_line_breaks_within_quotes_are_counted_without_labels_too(tmp_path):
    path = write(tmp_path, "test.csv", 'id,text\n1,"a\n2,b"\n3,c\n')
    read, notes = load_split(TASK, path, needs_labels=False)
    assert read.first == ["a\n2,b", "c"]
    assert notes == (
        "test.csv: 2 rows of 4 lines; no labels",
        "1 row with line breaks within quotes in test.csv; the first on line 2",
        "columns not read in test.csv: 'id'",
    )


def test_scores_may_lack(tmp_path):
    path = write(tmp_path, "any.tsv", "text1\ttext2\na\tb\n")
    read, _ = load_split(known_task("text", None), path, needs_labels=False)
    assert (read.second, read.labels.dtype) == (["b"], np.float32)
    assert np.isnan(read.labels).all()


def test_tasks_of_glue_and_the_demo_are_known_by_name(tmp_path):
    path = write(tmp_path, "test.tsv", "index\tsentence\n0\ta\n")
    task = known_task("sst2", ["negative", "positive"])
    assert load_split(task, path, needs_labels=False)[0].first == ["a"]
    assert known_task("demo", ["0", "1"]).columns == ("sentence",)
    with pytest.raises(InputError, match="task sst2 has the labels"):
        known_task("sst2", ["positive", "negative"])
    with pytest.raises(InputError, match="task sst-2: unknown"):
        known_task("sst-2", [])


def test_as_many_text_columns_are_named_as_the_adapters_task_has(tmp_path):
    path = write(tmp_path, "test.csv", "a,b,label\nx,y,pos\n")
    task = known_task("text", ["neg", "pos"], ("text",))
    with pytest.raises(InputError, match=r"--text-column a b: the adapter reads 1 of them"):
        load_split(task, path, columns=Columns(("a", "b")))
    notes = load_split(task, path, columns=Columns(("b",)))[1]
    assert notes[-1] == "columns not read in test.csv: 'a'"


def test_the_label_column_is_no_text_column(tmp_path):
    path = write(tmp_path, "test.csv", "text,label\nx,pos\n")
    for task in (known_task("text", ["neg", "pos"], ("text",)), GLUE_TASKS["sst2"]):
        (name,) = task.columns
        with pytest.raises(InputError, match=f"--label-column {name}: that is one of the text col"):
            load_split(task, path, columns=Columns(label=name))

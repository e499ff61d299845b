import gzip
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from increlora_jax.errors import InputError
from increlora_jax.tasks.classification import TASKS, load_texts
from increlora_jax.tasks.data.layout import Columns
from increlora_jax.tasks.metrics import METRICS


def test_names_are_the_nine_of_glue_and_the_two_of_our_own():
    assert sorted(TASKS) == sorted(
        ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "text", "demo"]
    )


@pytest.mark.parametrize(
    ("task", "names", "given"),
    [
        ("sst2", ("body", "gold"), Columns(("body",), "gold")),
        ("text", ("body", "gold"), Columns(("body",), "gold")),
        ("text", ("left", "right", "label"), Columns(("left", "right"))),
        ("rte", ("left", "right", "labels"), Columns(("left", "right"))),
        ("text", ("sentence", "gold"), Columns(label="gold")),
        ("sst2", ("sentence", "labels"), Columns()),
    ],
)
def test_columns_may_have_any_names(tmp_path, task, names, given):
    rows = [names, *(("x",) * (len(names) - 1) + (label,) for label in "01")]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(map("\t".join, rows)))
    data = load_texts(task, tmp_path, columns=given)
    assert data.train.labels.tolist() == [0, 1]
    assert data.task.is_pair == (len(names) == 3)


def test_columns_are_of_files_and_as_many_as_the_task_has(tmp_path):
    with pytest.raises(InputError, match="--text-column and --label-column are of files: give"):
        load_texts("sst2", None, columns=Columns(("a",)))
    with pytest.raises(InputError, match=r"--task demo knows its columns. Leave out --text-column"):
        load_texts("demo", None, columns=Columns(label="a"))
    with pytest.raises(InputError, match="--text-column a b: --task sst2 reads 1 of them"):
        load_texts("sst2", tmp_path, columns=Columns(("a", "b")))


def write_kind(path, rows):
    """Write rows of texts in the kind that the file's name says."""
    kind = path.name.lower().removeprefix(path.name.lower().split(".")[0])
    if kind == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
        return
    delimiter = "\t" if kind.startswith(".tsv") else ","
    lines = [delimiter.join(map(str, values)) for values in (rows[0], *(r.values() for r in rows))]
    text = "\n".join(map(json.dumps, rows) if kind.startswith(".jsonl") else lines)
    text = json.dumps(rows, indent=1) if kind in (".json", ".json.gz") else text
    path.write_bytes(gzip.compress(text.encode()) if kind.endswith(".gz") else text.encode())


ROWS = [{"sentence": "good", "label": 1}, {"sentence": "bad", "label": 0}]
KINDS = ".tsv .csv .jsonl .json .parquet .tsv.gz .csv.gz .jsonl.gz .json.gz .TSV .Csv.GZ .PARQUET"


@pytest.mark.parametrize("kind", KINDS.split())
@pytest.mark.parametrize("task", ["sst2", "text"])
def test_every_kind_of_file_gives_the_same_data(tmp_path, kind, task):
    write_kind(tmp_path / f"train{kind}", ROWS)
    write_kind(tmp_path / f"DEV{kind}", ROWS[:1])
    data = load_texts(task, tmp_path)
    assert (data.train.first, data.train.labels.tolist()) == (["good", "bad"], [1, 0])
    assert len(data.dev["dev"]) == 1
    assert data.notes[-2].startswith(f"train{kind}: 2 rows")


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_name_and_kind_of_file_choose_the_reader(tmp_path, suffix):
    content = {
        ".tsv": "sentence\tlabel\na\t0\nb\t1\n",
        ".csv": "sentence,label\na,0\nb,1\n",
        ".jsonl": '{"sentence": "a", "label": 0}\n{"sentence": "b", "label": 1}\n',
    }[suffix]
    (tmp_path / f"train{suffix}").write_text(content)
    (tmp_path / f"validation{suffix}").write_text(content)
    for name, labels in (("sst2", ("negative", "positive")), ("text", ("0", "1"))):
        data = load_texts(name, str(tmp_path))
        assert (data.task.name, data.task.labels) == (name, labels)
        assert data.dev["dev"].first == ["a", "b"]
        assert data.dev["dev"].labels.tolist() == [0, 1]
        assert set(data.task.metrics) <= set(METRICS)


@pytest.mark.parametrize(
    ("name", "data_dir", "problem_type", "problem"),
    [
        ("sst-2", None, "auto", "--task sst-2: unknown; the tasks are cola, sst2"),
        ("text", "x", "multi_label_classification", "Choose from auto, single_label"),
        ("rte", "x", "regression", "--problem-type is for --task text"),
        ("text", None, "auto", "--task text needs --data-dir"),
        ("demo", "x", "auto", "Leave out --data-dir"),
        ("sst2", "/nowhere", "auto", "/nowhere: cannot be read as a folder"),
    ],
)
def test_wrong_arguments_name_the_flag(name, data_dir, problem_type, problem):
    with pytest.raises(InputError, match=problem):
        load_texts(name, data_dir, problem_type)

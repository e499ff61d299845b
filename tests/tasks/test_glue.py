"""GLUE's files as distributed must read the same as the same rows under the hub's column names."""

import re

import numpy as np
import pytest

from increlora_jax.errors import InputError
from increlora_jax.tasks.glue import GLUE_TASKS, load_glue

# Task: header as distributed (None: no header line), then rows with places for texts and label.
ORIGINAL = {
    "cola": (None, "gj04\t{label}\t\t{0}"),
    "sst2": ("sentence\tlabel", "{0}\t{label}"),
    "mrpc": ("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{label}\t70\t71\t{0}\t{1}"),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\t{0}\t{1}\t{label}",
    ),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "5\t1\t2\t{0}\t{1}\t{label}"),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
        "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t1\t1e\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)\t{0}\t{1}\tneutral\t{label}",
    ),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\t{0}\t{1}\t{label}"),
    "rte": ("index\tsentence1\tsentence2\tlabel", "0\t{0}\t{1}\t{label}"),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "0\t{0}\t{1}\t{label}"),
}
# The labels as each task's own files write them.
LABELS = {
    "stsb": ("0.000", "5.000", "3.8"),
    "mnli": ("contradiction", "entailment", "neutral"),
    "qnli": ("not_entailment", "entailment", "entailment"),
    "rte": ("not_entailment", "entailment", "entailment"),
}
IDS = {
    "stsb": [0.0, 5.0, np.float32(3.8)],
    "mnli": [2, 0, 1],
    "qnli": [1, 0, 0],
    "rte": [1, 0, 0],
}
TEXTS = [('An "unbalanced quote .', "'Tis , 50 % café"), ('"', "naïve"), ("x\u2028y", "a\x0bb")]


def write_splits(folder, name, lines):
    folder.mkdir(exist_ok=True)
    for split in ("train", *GLUE_TASKS[name].dev_splits):
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", "utf-8", newline="")
    return folder


def original_lines(name):
    header, row = ORIGINAL[name]
    labels = LABELS.get(name, ("0", "1", "1"))
    rows = [row.format(*texts, label=label) for texts, label in zip(TEXTS, labels, strict=True)]
    return rows if header is None else [header, *rows]


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_files_as_distributed_equal_the_same_rows_under_the_hubs_names(tmp_path, name):
    task = GLUE_TASKS[name]
    labels = LABELS.get(name, ("0", "1", "1"))
    named = ["\t".join((*task.columns, "label"))]
    for texts, label in zip(TEXTS, labels, strict=True):
        named.append("\t".join((*texts[: len(task.columns)], label)))
    original = load_glue(name, write_splits(tmp_path / "original", name, original_lines(name)))
    plain = load_glue(name, write_splits(tmp_path / "plain", name, named))
    assert (*original.dev,) == task.dev_splits
    for left, right in zip(
        (original.train, *original.dev.values()), (plain.train, *plain.dev.values()), strict=True
    ):
        assert left.first == right.first == [first for first, _ in TEXTS]
        assert left.second == right.second
        assert (left.second == [second for _, second in TEXTS]) == task.is_pair
        assert left.labels.tolist() == right.labels.tolist() == IDS.get(name, [0, 1, 1])
        assert left.labels.dtype == (np.float32 if task.is_regression else np.int32)


@pytest.mark.parametrize("name", [name for name, task in GLUE_TASKS.items() if task.is_pair])
def test_every_pair_may_be_called_sentence1_and_sentence2(tmp_path, name):
    label = LABELS.get(name, ("0",))[0]
    lines = ["sentence1\tsentence2\tlabel", f"a\tb\t{label}"]
    train = load_glue(name, write_splits(tmp_path / name, name, lines)).train
    assert (train.first, train.second) == (["a"], ["b"])


@pytest.mark.parametrize("name", [name for name, task in GLUE_TASKS.items() if task.labels])
def test_label_may_be_given_by_name_or_by_id(tmp_path, name):
    task = GLUE_TASKS[name]
    texts = "\t".join("a" for _ in task.columns)
    lines = ["\t".join((*task.columns, "label"))]
    lines += [f"{texts}\t{label}" for label in (*task.labels, *range(task.num_labels))]
    train = load_glue(name, write_splits(tmp_path / name, name, lines)).train
    assert train.labels.tolist() == [*range(task.num_labels)] * 2


def test_broken_questions_of_qqp_are_skipped_and_reported_in_its_own_layout_only(tmp_path):
    lines = original_lines("qqp")
    lines[2:2] = ["9\t3\t4\tbroken", "in two\tquestion\t0", ""]
    data = load_glue("qqp", write_splits(tmp_path / "qqp", "qqp", lines))
    assert len(data.train) == 3
    assert data.notes[1] == (
        "3 rows with too few or too many fields skipped in train.tsv, the first on line 3"
    )
    lines[0] = lines[0].replace("is_duplicate", "label")
    with pytest.raises(InputError, match=r"train.tsv:3: this row has 4 fields and the header 6"):
        load_glue("qqp", write_splits(tmp_path / "qqp", "qqp", lines))


@pytest.mark.parametrize(
    ("name", "lines", "problem"),
    [
        ("sst2", ["sentence\tlabel", "a\tgood"], r"train.tsv:2: label 'good', and the known"),
        ("sst2", ["sentence\tlabel", "a\t-1"], r"train.tsv:2: label '-1'"),
        ("sst2", ["text\tlabel", "a\t1"], r"train.tsv:1: the columns here are 'text', 'label'"),
        ("rte", ["sentence1\tsentence2\tlabel", "a\tb\t"], r"train.tsv:2: the label is empty"),
        ("stsb", ["sentence1\tsentence2\tlabel", "a\tb\t5.5"], r"train.tsv:2: .*not within 0 to 5"),
        ("stsb", ["sentence1\tsentence2\tscore", "a\tb\thigh"], r"train.tsv:2: .*not a finite num"),
        ("cola", ["gj04\t1\t\tFine.", "gj04\t1\tFine."], r"train.tsv:2: this row has 3 fields"),
    ],
)
def test_bad_rows_are_named(tmp_path, name, lines, problem):
    with pytest.raises(InputError, match=problem):
        load_glue(name, write_splits(tmp_path / name, name, lines))


@pytest.mark.parametrize(
    ("name", "folder", "n_train", "dev_counts"),
    [
        ("sst2", "SST-2", 67_349, [428, 444]),
        ("mrpc", "MRPC", 3_668, [129, 279]),
        ("rte", "RTE", 2_490, [146, 131]),
    ],
)
def test_real_data_has_the_published_label_counts(data_dir, name, folder, n_train, dev_counts):
    data = load_glue(name, data_dir / "glue" / folder)
    assert len(data.train) == n_train
    assert np.bincount(data.dev["dev"].labels).tolist() == dev_counts
    counts = ", ".join(map(str, dev_counts))
    assert re.sub("'[a-z_]+' ", "", data.notes[1]).endswith(f"lines; labels {counts}")


def test_real_stsb_scores(data_dir):
    data = load_glue("stsb", data_dir / "glue" / "STS-B")
    assert (len(data.train), len(data.dev["dev"])) == (5_749, 1_500)
    assert data.dev["dev"].labels[:3].tolist() == [5.0, 4.75, 5.0]
    assert (data.train.labels.min(), data.train.labels.max()) == (0.0, 5.0)

"""The hub as `datasets` sees it, in processes of their own: it reads its settings when imported."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("datasets")

# A hub that refuses connections is asked again and again, with pauses that are not under test.
WITHOUT_PAUSES = "import time; time.sleep = lambda seconds: None\n"
LOAD = """
import sys
from increlora_jax.errors import InputError
from increlora_jax.tasks.classification import load_texts
try:
    data = load_texts(sys.argv[1], None)
except InputError as error:
    sys.exit(f"InputError: {error}")
print(repr((data.train.first, data.train.second, data.train.labels.tolist(),
            str(data.train.labels.dtype), list(data.dev), data.notes)))
"""
# A folder of the repository's name in the working directory stands in for the hub.
CARD = """---
configs:
- config_name: {name}
  data_files:
  - split: train
    path: train.jsonl
  - split: validation
    path: validation.jsonl
  - split: test
    path: test.jsonl
dataset_info:
- config_name: {name}
  features:
{features}
---
"""


def load_elsewhere(tmp_path, name, script=LOAD, **environment):
    cleared = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_PAUSES + script, name],
        cwd=tmp_path,
        env={
            **cleared,
            "HF_HOME": str(tmp_path / "cache"),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def write_hub(tmp_path, name, features, rows):
    folder = tmp_path / "nyu-mll" / "glue"
    folder.mkdir(parents=True)
    lines = []
    for column, kind in features.items():
        lines.append(f"  - name: {column}")
        if isinstance(kind, str):
            lines.append(f"    dtype: {kind}")
        else:
            lines += ["    dtype:", "      class_label:", "        names:"]
            lines += [f"          '{index}': {label}" for index, label in enumerate(kind)]
    (folder / "README.md").write_text(CARD.format(name=name, features="\n".join(lines)))
    for split in ("train", "validation"):
        content = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{split}.jsonl").write_text(content)
    hidden = [row | {"label": -1} for row in rows]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, hidden)))


@pytest.mark.parametrize(
    "environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}]
)
def test_unreachable_hub_says_how_to_work_offline(tmp_path, environment):
    result = load_elsewhere(tmp_path, "rte", **environment)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert last.startswith("InputError: rte cannot be loaded from nyu-mll/glue")
    assert "data_dir" in last
    assert "HF_HUB_OFFLINE=1" in last


def test_classes_come_as_the_hub_numbers_them(tmp_path):
    features = {
        "sentence1": "string",
        "sentence2": "string",
        "label": ["entailment", "not_entailment"],
    }
    rows = [
        {"sentence1": "a", "sentence2": "b", "label": 1},
        {"sentence1": "c", "sentence2": " ", "label": 0},
    ]
    write_hub(tmp_path, "rte", features, rows)
    result = load_elsewhere(tmp_path, "rte", HF_HUB_OFFLINE="1")
    assert result.stdout.strip() == repr(
        (
            ["a", "c"],
            ["b", " "],
            [1, 0],
            "int32",
            ["dev"],
            (
                "nyu-mll/glue's rte train: 2 rows; labels 'entailment' 1, 'not_entailment' 1",
                "1 row with empty text in nyu-mll/glue's rte train",
                "nyu-mll/glue's rte dev: 2 rows; labels 'entailment' 1, 'not_entailment' 1",
                "1 row with empty text in nyu-mll/glue's rte dev",
            ),
        )
    ), result.stderr


def test_scores_come_as_they_are(tmp_path):
    features = {"sentence1": "string", "sentence2": "string", "label": "float32"}
    write_hub(tmp_path, "stsb", features, [{"sentence1": "a", "sentence2": "b", "label": 4.5}])
    result = load_elsewhere(tmp_path, "stsb", HF_HUB_OFFLINE="1")
    notes = tuple(
        f"nyu-mll/glue's stsb {split}: 1 row; scores 4.5 to 4.5, mean 4.5"
        for split in ("train", "dev")
    )
    assert result.stdout.strip() == repr((["a"], ["b"], [4.5], "float32", ["dev"], notes))


def test_another_order_of_labels_is_refused(tmp_path):
    features = {"sentence": "string", "label": ["positive", "negative"]}
    write_hub(tmp_path, "sst2", features, [{"sentence": "a", "label": 1}])
    result = load_elsewhere(tmp_path, "sst2", HF_HUB_OFFLINE="1")
    assert "the hub's sst2 now has the labels ['positive', 'negative']" in result.stderr


SCORE = """
from increlora_jax.config import TaskConfig
from increlora_jax.errors import InputError
from increlora_jax.run.scored_data import Source, load_scored
saved = {"task": "sst2", "labels": ["negative", "positive"], "dev_data": {}}
for name in ("train", "dev", "validation", "test", "tset"):
    try:
        scored = load_scored(saved, TaskConfig(task="sst2"), Source(split=name))
    except InputError as error:
        print(error)
    else:
        print(name, {key: split.first for key, split in scored.data.dev.items()})
"""


def test_any_split_that_the_hub_has_is_scored_or_refused_by_name(tmp_path):
    features = {"sentence": "string", "label": ["negative", "positive"]}
    write_hub(tmp_path, "sst2", features, [{"sentence": "a", "label": 1}])
    result = load_elsewhere(tmp_path, "sst2", SCORE, HF_HUB_OFFLINE="1")
    train, dev, validation, hidden, unknown = result.stdout.splitlines()
    assert [train, dev, validation] == [
        f"{name} {{'{name}': ['a']}}" for name in ("train", "dev", "validation")
    ]
    assert hidden.startswith("nyu-mll/glue's sst2 test has hidden labels (-1): there is no score")
    assert unknown.startswith("split tset: nyu-mll/glue's sst2 has train, dev, test. Name one")


ASK = """
import sys
from increlora_jax.config import TaskConfig
from increlora_jax.tasks.registry import load_task
data = load_task(TaskConfig(task=sys.argv[1]))
print(repr((data.train.rows, list(data.dev), data.notes)))
"""


def test_questions_come_as_the_hub_has_them(tmp_path):
    folder = tmp_path / "rajpurkar" / "squad"
    folder.mkdir(parents=True)
    answers = {"text": ["Denver"], "answer_start": [0]}
    for split, question in (("train", "Who?"), ("validation", "Which team?")):
        row = {"id": "1", "title": "t", "context": "Denver won.", "question": question}
        (folder / f"{split}.jsonl").write_text(json.dumps({**row, "answers": answers}))
    result = load_elsewhere(tmp_path, "squad", ASK, HF_HUB_OFFLINE="1")
    notes = tuple(
        f"rajpurkar/squad's {split}: 1 question; 0 without an answer" for split in ("train", "dev")
    )
    told = (
        "[Question(id='1', question='Who?', context='Denver won.', "
        f"answers=(Answer(text='Denver', start=0),))], ['dev'], {notes!r}"
    )
    assert result.stdout.strip() == f"({told})", result.stderr

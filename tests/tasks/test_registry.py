import pytest

from increlora_jax.errors import InputError
from increlora_jax.tasks.metrics import METRICS
from increlora_jax.tasks.registry import load_task, task_names


def test_names_are_the_nine_of_glue_and_the_two_of_our_own():
    assert sorted(task_names()) == sorted(
        ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "text", "demo"]
    )


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
        data = load_task(name, str(tmp_path))
        assert (data.task.name, data.task.labels) == (name, labels)
        assert data.dev["dev"].first == ["a", "b"]
        assert data.dev["dev"].labels.tolist() == [0, 1]
        assert set(data.task.metrics) <= set(METRICS)


@pytest.mark.parametrize(
    ("name", "data_dir", "problem_type", "problem"),
    [
        ("sst-2", None, "auto", "--task sst-2: unknown; the tasks are cola, sst2"),
        ("text", "x", "multi_label_classification", "choose from auto, single_label"),
        ("rte", "x", "regression", "--problem-type is for --task text"),
        ("text", None, "auto", "--task text needs --data-dir"),
        ("demo", "x", "auto", "leave out --data-dir"),
        ("sst2", "/nowhere", "auto", "/nowhere: cannot be read as a folder"),
    ],
)
def test_wrong_arguments_name_the_flag(name, data_dir, problem_type, problem):
    with pytest.raises(InputError, match=problem):
        load_task(name, data_dir, problem_type)

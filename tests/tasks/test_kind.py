"""The protocol of kinds, and a kind that the package does not know."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from increlora_jax.config import TaskConfig
from increlora_jax.run.command_line import parse_run
from increlora_jax.tasks import registry
from increlora_jax.tasks.kind import count_not_finite, larger_is_better, smaller_is_better
from increlora_jax.train import train
from tests.toy_kind import TOY


@pytest.mark.parametrize(
    ("is_better", "good", "bad"), [(larger_is_better, 0.5, 0.25), (smaller_is_better, 0.25, 0.5)]
)
def test_what_has_no_value_is_worse_than_any(is_better, good, bad):
    assert is_better(good, bad)
    assert not is_better(bad, good)
    assert not is_better(good, good)
    assert is_better(bad, math.nan)
    assert not is_better(math.nan, bad)
    assert not is_better(math.nan, math.nan)


def test_rows_with_any_number_that_is_not_finite_are_counted_once():
    tree = {"a": np.ones((3, 2)), "b": np.zeros(3), "c": np.arange(3)}
    assert count_not_finite(tree) == 0
    tree["a"][1] = np.nan
    tree["b"][1:] = np.inf
    assert count_not_finite(tree) == 2


def test_dev_examples_that_are_training_examples_are_counted_whatever_their_labels(tmp_path):
    def write(name, rows):
        text = "\n".join(["sentence\tlabel", *rows])
        (tmp_path / f"{name}.tsv").write_text(text)

    write("train", ["a\t0", "b\t1", "b\t1", "c\t0"])
    write("dev", ["b\t0", "d\t1", "b\t1"])
    config = TaskConfig(task="text", data_dir=str(tmp_path))
    (told,) = [n for n in registry.load_task(config).notes if "flatters" in n]
    assert told.startswith("2 of 3 examples of dev.tsv are training examples of train.tsv as well")
    write("dev", ["d\t0"])
    assert not any("flatters" in note for note in registry.load_task(config).notes)


def test_a_kind_of_somebody_elses_trains_and_its_best_adapter_is_that_of_the_least_metric(
    short_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(registry, "READERS", (*registry.READERS, TOY))
    words = ["--max-steps", "60", "--eval-steps", "10", "--learning-rate", "2e-2"]
    config = parse_run([*short_run, *words])
    results = train(replace(config, task=replace(config.task, task="toy", data_dir=None)))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    distances = [line["distance"] for line in told if line["split"] == "dev"]
    assert len(distances) == 6
    assert results["best_metrics"] == {"distance": min(distances)}
    assert min(distances) < 0.5 * distances[0]
    assert results["data"] == {"train": {"rows": 256}, "dev": {"rows": 64}}
    assert results["total_rank"] == results["rank_budget"]

"""What runs tell in the end, of numbers made by hand; through the commands: test_together.py."""

import json
import platform
from importlib.metadata import version

import jax
import jaxlib
import pytest

from increlora_jax.run.build import plan_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.run.results import results_of_all, summarize
from increlora_jax.training.loop import Outcome
from tests.tiny import without

OUTCOME = Outcome({}, {}, {}, [], 2, 12.3456, 1.5, {"training": 9.8765, "data": 0.4}, 10.0, 0.25)


@pytest.fixture
def plan_of(short_words):
    """The plan of a command line."""
    words = without(short_words, "--seed")
    return lambda *more: plan_run(parse_run([*words, *more]))


def results(*accuracies):
    return [
        {"metrics": {"accuracy": a}, "best_metrics": {"accuracy": 1.0}, "total_rank": index}
        for index, a in enumerate(accuracies)
    ]


def test_seeds_have_a_mean_and_the_deviation_of_the_sample(plan_of, tmp_path):
    told = results_of_all(plan_of("--seeds", "1,2,3"), results(0.5, 0.6, 0.7), [OUTCOME] * 3)
    (variant,) = told["variants"]
    assert variant["metrics"]["accuracy"] == {
        "mean": pytest.approx(0.6),
        "sample_standard_deviation": pytest.approx(0.1),
        "values": [0.5, 0.6, 0.7],
    }
    assert variant["best_metrics"]["accuracy"]["sample_standard_deviation"] == 0
    assert variant["total_rank"] == [0, 1, 2]
    assert told["train_tokens_per_second"] == 30.0
    assert told["padding_share"] == 0.25
    assert summarize(told, tmp_path) == (
        "accuracy 0.6000 ± 0.1000 (mean ± sample standard deviation of 3 seeds); 12 s "
        f"(training 10); see {tmp_path}/results.json"
    )
    assert json.loads(json.dumps(told)) == told


def test_every_variant_of_a_sweep_has_its_own_in_the_order_given(plan_of):
    plan = plan_of("--seeds", "1,2", "--sweep", "beta1=0.9,0.5")
    told = results_of_all(plan, results(0.1, 0.2, 0.3, 0.4), [OUTCOME] * 4)
    assert [variant["settings"] for variant in told["variants"]] == [{"beta1": 0.9}, {"beta1": 0.5}]
    assert [variant["metrics"]["accuracy"]["values"] for variant in told["variants"]] == [
        [0.1, 0.3],
        [0.2, 0.4],
    ]
    assert told["summary"] == (
        "beta1-0.9: accuracy 0.2000 ± 0.1414; beta1-0.5: accuracy 0.3000 ± 0.1414 "
        "(mean ± sample standard deviation of 2 seeds)"
    )


def test_a_single_run_of_a_variant_has_no_deviation(plan_of):
    told = results_of_all(plan_of("--sweep", "beta1=0.9,0.5"), results(0.1, 0.2), [OUTCOME] * 2)
    assert told["variants"][0]["metrics"]["accuracy"]["sample_standard_deviation"] is None
    assert told["summary"] == "beta1-0.9: accuracy 0.1000; beta1-0.5: accuracy 0.2000"


def test_a_run_says_its_ranks_and_which_modules_are_full(tmp_path):
    told = {"metrics": {"f1": 0.25}, "rank_budget": 8, "total_rank": 8, "full_modules": ["a"]}
    assert summarize(told | {"seconds": 2.0}, tmp_path) == (
        f"f1 0.2500; total rank 8 of 8; full: a; 2 s; see {tmp_path}/results.json"
    )
    bare = told | {"rank_budget": None, "seconds": 2.0}
    assert summarize(bare, tmp_path) == f"f1 0.2500; 2 s; see {tmp_path}/results.json"


def test_results_tell_what_they_ran_on(plan_of):
    told = results_of_all(plan_of("--seeds", "1,2"), results(0.5, 0.6), [OUTCOME] * 2)
    assert told["platform"] == {
        "backend": "cpu",
        "device_kind": "cpu",
        "devices": jax.device_count(),
        "processes": 1,
        "system": platform.platform(),
        "x64": False,
    }
    names = {"python", "increlora_jax", "jax", "jaxlib", "flax", "optax", "transformers", "numpy"}
    assert set(told["versions"]) == names | {"orbax.checkpoint"}
    assert told["versions"]["jaxlib"] == jaxlib.__version__
    assert told["versions"]["orbax.checkpoint"] == version("orbax-checkpoint")

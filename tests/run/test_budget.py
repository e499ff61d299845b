"""Sizes that match a number of parameters."""

import json

import pytest

from increlora_jax import train
from increlora_jax.errors import InputError
from increlora_jax.methods.table import METHODS
from increlora_jax.run.build import plan_run
from increlora_jax.run.command_line import parse_run
from tests.tiny import without

SIZED = sorted(name for name, entry in METHODS.items() if entry.size)


def count(results):
    counts = results["trainable_parameters"]
    return counts["active"] + counts["added"]


def budget_of(words, method, budget):
    return plan_run(parse_run([*words, "--method", method, "--match-budget", budget]))


@pytest.mark.parametrize("method", SIZED)
def test_a_run_trains_nearly_as_many_parameters_as_asked(short_words, tmp_path, method, capsys):
    words = [*short_words, "--method", method, "--match-budget", "1.2k"]
    train.main([*words, "--output-dir", str(tmp_path / "run")])
    told, setting = capsys.readouterr().err, METHODS[method].size.replace("_", "-")
    assert f"note: --{setting} " in told
    assert "comes nearest to 1,200 adapter parameters" in told
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    step = {"target_total_rank": 60, "target_rank": 240, "adapter_size": 80}
    # The last modules to grow may be larger or smaller than the mean.
    more = 200 if METHODS[method].changes_ranks else 0
    assert abs(count(results) - 1200) <= step[METHODS[method].size] + more
    train.main([*words, "--output-dir", str(tmp_path / "run")])
    assert "this run is finished" in capsys.readouterr().out


def test_the_budget_may_be_that_of_another_run(run_once, short_words, tmp_path):
    first = run_once()
    words = [*short_words, "--method", "houlsby", "--match-budget-of", str(first)]
    train.main([*words, "--output-dir", str(tmp_path / "run")])
    ours, theirs = (
        count(json.loads((folder / "results.json").read_text()))
        for folder in (tmp_path / "run", first)
    )
    assert ours == pytest.approx(theirs, rel=0.2)
    again = ["--match-budget-of", str(tmp_path / "run")]
    plan = plan_run(parse_run([*short_words, "--method", "houlsby", *again]))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert f"it makes {count(results):,}" in " ".join(plan.notes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--match-budget", "many"], "--match-budget many: write a number of parameters"),
        (["--match-budget", "0"], "--match-budget 0: write a number of parameters"),
        (["--match-budget", "1M", "--match-budget-of", "x"], "both give a budget. Give one"),
        (["--match-budget-of", "nowhere"], "nowhere"),
        *((["--method", name, "--match-budget", "1M"], f"--method {name} has no size to choose")
          for name in ("full", "head", "bitfit")),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_be_is_refused(short_words, words, message):
    with pytest.raises(InputError, match=message):
        plan_run(parse_run([*short_words, *words]))


def test_a_run_without_adapter_parameters_is_no_budget(run_once, short_words):
    head = run_once("--method", "head")
    with pytest.raises(InputError, match="that run has no adapter parameters"):
        plan_run(parse_run([*short_words, "--match-budget-of", str(head)]))


def test_a_larger_budget_is_a_larger_size(short_words):
    words = without(short_words, "--target-rank") if "--target-rank" in short_words else short_words
    small, large = (budget_of(words, "lora", text).config for text in ("1000", "0.002M"))
    assert small.growth.target_rank < large.growth.target_rank

"""Stopping early and choosing the best adapter, through the commands."""

import json

import pytest
from safetensors.numpy import load_file

from increlora_jax import evaluate, train
from increlora_jax.run.command_line import parse_run
from increlora_jax.run.folder import RESULTS
from increlora_jax.run.history import read_groups
from increlora_jax.run.report_charts import steps_of
from increlora_jax.run.report_page import write_report
from increlora_jax.run.report_tables import show_headline
from increlora_jax.runtime.signals import Preempted
from tests.tiny import without
from tests.training.test_loop import SignalAt

BY_LOSS = ["--metric-for-best-model", "eval_loss", "--eval-steps", "2"]
NO_GAIN = ["--early-stopping-patience", "2", "--early-stopping-threshold", "100"]
"""The first evaluation is a gain, and no later one is by so much."""


def read_results(folder):
    return json.loads((folder / RESULTS).read_text())


def read_lines(folder, split):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


def tensors_of(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def stopped(run_once):
    return run_once(*BY_LOSS, *NO_GAIN)


def test_a_run_stops_after_so_many_evaluations_without_a_gain(stopped):
    results = read_results(stopped)
    assert (results["steps"], results["stopped_early"]) == (6, True)
    assert [line["step"] for line in read_lines(stopped, "dev")] == [2, 4, 6]
    assert [line["step"] for line in read_lines(stopped, "train")] == list(range(6))


def test_the_report_says_so_and_draws_the_learning_rate_that_was_used(stopped, tmp_path):
    write_report([stopped], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "6 of 14 steps, stopped early" in text
    (history,) = read_groups([stopped])[0].members
    assert steps_of(history) == read_results(stopped)["total_steps"] == 14


def test_patience_that_ends_with_the_run_is_no_early_stop(run_once):
    words = ["--eval-steps", "7", *BY_LOSS[:2], *NO_GAIN[2:], "--early-stopping-patience", "1"]
    assert not read_results(run_once(*words))["stopped_early"]


def test_the_report_has_the_metrics_of_the_adapter_that_is_kept(run_once, tmp_path):
    folder = run_once(*BY_LOSS, "--greater-is-better", "--load-best-model-at-end")
    headline = show_headline(read_groups([folder]))
    told = {figure.label: figure.value for figure in headline.figures}
    results = read_results(folder)
    assert told["loss on dev"] == f"{results['metrics']['loss']:.4f}"
    assert told["total rank"] == str(results["total_rank"])


def test_its_learning_rate_is_that_of_the_whole_run(stopped, run_once):
    whole = read_lines(run_once(*BY_LOSS), "train")
    assert read_lines(stopped, "train") == whole[:6]


def test_the_best_adapter_is_that_of_the_lowest_loss(run_once):
    folder = run_once(*BY_LOSS)
    losses = {line["step"]: line["loss"] for line in read_lines(folder, "dev")}
    results = read_results(folder)
    assert results["best_step"] == min(losses, key=losses.get)
    assert results["best_metrics"]["loss"] == min(losses.values())
    assert list(results["metrics"]) == ["loss", "accuracy"]
    assert not results["stopped_early"]


def test_evaluation_gives_the_metrics_of_the_results_with_the_loss(stopped):
    results = read_results(stopped)
    for adapter, key in (("adapter", "metrics"), ("adapter-best", "best_metrics")):
        assert evaluate.evaluate(stopped, adapter=adapter) == pytest.approx(results[key], abs=1e-6)


def test_the_best_adapter_becomes_the_last_one_on_request(run_once):
    folder = run_once(*BY_LOSS, "--greater-is-better", "--load-best-model-at-end")
    results, best = read_results(folder), tensors_of(folder / "adapter-best")
    losses = {line["step"]: line["loss"] for line in read_lines(folder, "dev")}
    assert results["best_step"] == max(losses, key=losses.get) < 14
    assert results["metrics"] == results["best_metrics"]
    assert results["adapter_step"] == results["best_step"]
    assert results["steps"] == results["total_steps"] == 14
    assert sum(sum(grown.values()) for grown in results["rounds"].values()) == (
        results["total_rank"] - len(results["ranks"])
    )
    assert all(int(step) < results["best_step"] for step in results["rounds"])
    last = tensors_of(folder / "adapter")
    assert all((last[name] == best[name]).all() for name in best)
    for module, rank in results["ranks"].items():
        assert last[f"{module}.adapter.active"].sum() == rank
    assert results["total_rank"] == sum(results["ranks"].values())
    assert evaluate.evaluate(folder) == pytest.approx(results["metrics"], abs=1e-6)


def test_a_stop_in_between_changes_nothing(stopped, short_run, tmp_path):
    words = [*short_run, *BY_LOSS, *NO_GAIN, "--save-steps", "1"]
    stop = SignalAt(5)
    with stop.listening(), pytest.raises(Preempted):
        train.train(parse_run(words), stop)
    train.main(words)
    again = tmp_path / "run"
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (again / name).read_bytes() == (stopped / name).read_bytes()
    train.main(words)  # finished: it trains nothing
    assert read_results(again)["steps"] == 6


@pytest.mark.slow
def test_each_run_of_a_sweep_stops_where_it_stops_alone(short_words, tmp_path):
    """A rate of next to nothing gains next to nothing; the other run goes on."""
    words = [*without(short_words, "--learning-rate"), *BY_LOSS, "--lora-dropout", "0"]
    words += ["--early-stopping-patience", "1", "--early-stopping-threshold", "1e-3"]
    train.main([*words, "--sweep", "learning_rate=1e-2,1e-9", "--output-dir", str(tmp_path / "s")])
    steps = {}
    for rate in ("1e-2", "1e-9"):
        alone, among = tmp_path / rate, tmp_path / "s" / f"learning_rate-{rate}"
        train.main([*words, "--learning-rate", rate, "--output-dir", str(alone)])
        one, other = read_results(alone), read_results(among)
        steps[rate] = one["steps"]
        assert other["steps"] == one["steps"]
        assert other["rounds"] == one["rounds"]
        assert other["ranks"] == one["ranks"]
        assert other["metrics"] == pytest.approx(one["metrics"], abs=1e-4)
        assert len(read_lines(among, "train")) == one["steps"]
        assert evaluate.evaluate(among) == pytest.approx(other["metrics"], abs=1e-6)
    assert steps["1e-9"] == 4 < steps["1e-2"]


def test_another_run_that_begins_with_it_hears_of_its_reserve(stopped, short_run, capsys):
    """Reserve slots have a part in what a run computes, as long as its budget is not spent."""
    results = read_results(stopped)
    assert results["total_rank"] < results["rank_budget"]
    train.main([*short_run, "--init-adapter", str(stopped / "adapter"), "--target-rank", "4"])
    assert "of them reserve slots of that run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric-for-best-model", "f2"], "sst2 has accuracy and loss"),
        (["--metric-for-best-model", "acuracy"], "did you mean accuracy?"),
        (["--greater-is-better", "false"], "--greater-is-better is for --metric-for-best-model"),
    ],
)
def test_a_metric_that_is_none_of_the_tasks_is_named(short_run, words, message, capsys):
    with pytest.raises(SystemExit):
        train.main([*short_run, *words])
    assert message in capsys.readouterr().err

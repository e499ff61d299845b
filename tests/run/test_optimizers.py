"""`--optimizer` through the commands: growth, a stop in between, seeds together."""

import json

import numpy as np
import pytest

from increlora_jax import train
from increlora_jax.run.command_line import parse_run
from increlora_jax.run.idle import idle_settings
from increlora_jax.runtime.signals import Preempted
from tests.methods.test_adalora_run import lines_of
from tests.tiny import without
from tests.training.test_loop import SignalAt

OTHERS = ("lion", "adafactor", "muon", "sgd")


@pytest.mark.parametrize(
    "name",
    ["muon", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS if n != "muon")],
)
def test_a_stop_in_between_changes_nothing(run_once, short_run, tmp_path, name):
    own = ["--optimizer", name]
    ran = run_once(*own)
    results = json.loads((ran / "results.json").read_text())
    assert results["total_rank"] == results["rank_budget"]
    words = [*short_run, *own, "--save-steps", "1"]
    stop = SignalAt(5)
    with stop.listening(), pytest.raises(Preempted):
        train.train(parse_run(words), stop)
    train.main(words)
    for file in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (ran / file).read_bytes()


@pytest.mark.parametrize("name", ["lion", "muon"])
def test_seeds_together_lose_the_same_as_alone(run_once, short_words, tmp_path, name):
    own = ["--optimizer", name]
    train.main([*without(short_words, "--seed"), *own, "--seeds", "7,8",
                "--output-dir", str(tmp_path / "both")])  # fmt: skip
    folders = run_once(*own), tmp_path / "both" / "seed-7"
    losses = [[line["loss"] for line in lines_of(folder, "train")] for folder in folders]
    np.testing.assert_allclose(
        *losses, rtol=1e-3
    )  # a sign, or a step of Newton-Schulz, of rounding


def test_a_number_that_the_optimizer_does_not_read_is_said(short_words):
    idle = idle_settings(parse_run([*short_words, "--optimizer", "sgd", "--adam-beta1", "0.5"]))
    assert idle["adam_beta1"] == "--optimizer sgd"
    assert "adam_beta1" not in idle_settings(parse_run([*short_words, "--optimizer", "lion"]))

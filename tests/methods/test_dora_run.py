"""DoRA through the commands: resumed, beside another seed, exported and computed by PEFT."""

import json

import numpy as np
import pytest

from increlora_jax import train
from increlora_jax.evaluate import main as evaluate
from increlora_jax.export import main as export
from increlora_jax.run.command_line import parse_run
from increlora_jax.runtime.signals import Preempted
from tests.methods.test_adalora_run import lines_of
from tests.tiny import without
from tests.training.test_loop import SignalAt

DORA = ["--method", "dora", "--target-rank", "2"]


@pytest.fixture(scope="module")
def ran(run_once):
    return run_once(*DORA)


def test_a_stop_in_between_changes_nothing(ran, short_run, tmp_path):
    words = [*short_run, *DORA, "--save-steps", "1"]
    stop = SignalAt(5)
    with stop.listening(), pytest.raises(Preempted):
        train.train(parse_run(words), stop)
    train.main(words)
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (ran / name).read_bytes()


def test_seeds_together_lose_the_same_as_alone(ran, short_words, tmp_path):
    words = [*without(short_words, "--seed"), *DORA, "--seeds", "7,8"]
    train.main([*words, "--output-dir", str(tmp_path / "both")])
    folders = ran, tmp_path / "both" / "seed-7"
    losses = [[line["loss"] for line in lines_of(folder, "train")] for folder in folders]
    np.testing.assert_allclose(*losses, rtol=1e-4)  # float32 sums in another order


def test_it_is_evaluated_and_others_compute_the_same(ran, tmp_path, capsys):
    evaluate(["--run", str(ran)])
    told = json.loads(capsys.readouterr().out)
    results = json.loads((ran / "results.json").read_text())
    assert told["accuracy"] == pytest.approx(results["metrics"]["accuracy"], abs=1e-6)
    for form in ("peft", "merged", "native"):
        export(["--run", str(ran), "--format", form, "--output-dir", str(tmp_path / form)])
        differences = json.loads(capsys.readouterr().out)["differences"]
        assert max(differences.values()) < 1e-5
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["use_dora"]


def test_peft_computes_the_same(ran, tmp_path, capsys):
    pytest.importorskip("torch", reason="pip install torch peft")
    pytest.importorskip("peft", reason="pip install torch peft")
    export(["--run", str(ran), "--format", "peft", "--output-dir", str(tmp_path / "peft")])
    differences = json.loads(capsys.readouterr().out)["differences"]
    assert len(differences) == 2
    assert max(differences.values()) < 1e-5

"""AdaLoRA through the commands: resumed, beside another seed, exported and grown from."""

import json

import numpy as np
import pytest

from increlora_jax import train
from increlora_jax.evaluate import main as evaluate
from increlora_jax.export import main as export
from increlora_jax.run.command_line import parse_run
from increlora_jax.runtime.signals import Preempted
from tests.tiny import without
from tests.training.test_loop import SignalAt

ADALORA = ["--method", "adalora", "--init-r", "3", "--tinit", "2", "--tfinal", "4"]


def lines_of(folder, split):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


@pytest.fixture(scope="module")
def pruned(run_once):
    return run_once(*ADALORA)


def test_the_log_has_every_pruning_down_to_the_budget(pruned):
    results = json.loads((pruned / "results.json").read_text())
    first, *rounds = lines_of(pruned, "growth")
    assert first["total_rank"] == 36
    assert rounds[-1]["total_rank"] == results["total_rank"] == results["rank_budget"] == 24
    totals = [line["total_rank"] for line in rounds]
    assert totals == sorted(totals, reverse=True)
    assert results["step_compilations"] == 1


def test_a_stop_in_between_changes_nothing(pruned, short_run, tmp_path):
    words = [*short_run, *ADALORA, "--save-steps", "1"]
    for at in (4, 9):
        stop = SignalAt(at)
        with stop.listening(), pytest.raises(Preempted):
            train.train(parse_run(words), stop)
    train.main(words)
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (pruned / name).read_bytes()


def test_seeds_together_lose_the_same_as_alone(pruned, short_words, tmp_path):
    words = [*without(short_words, "--seed"), *ADALORA, "--seeds", "7,8"]
    train.main([*words, "--output-dir", str(tmp_path / "both")])
    alone, among = (lines_of(f, "train") for f in (pruned, tmp_path / "both" / "seed-7"))
    for name in ("loss", "total_rank"):
        values = [[line[name] for line in lines] for lines in (alone, among)]
        np.testing.assert_allclose(*values, rtol=1e-4)  # float32 sums in another order


def test_it_is_evaluated_exported_and_grown_from(pruned, short_words, tmp_path, capsys):
    evaluate(["--run", str(pruned)])
    told = json.loads(capsys.readouterr().out)
    results = json.loads((pruned / "results.json").read_text())
    assert told["accuracy"] == pytest.approx(results["metrics"]["accuracy"], abs=1e-6)
    export(["--run", str(pruned), "--format", "peft", "--output-dir", str(tmp_path / "peft")])
    words = [*short_words, "--init-adapter", str(tmp_path / "peft"), "--target-rank", "3"]
    train.main([*words, "--output-dir", str(tmp_path / "grown")])
    assert json.loads((tmp_path / "grown" / "results.json").read_text())["total_rank"] == 36


def test_it_begins_with_no_other_adapter(pruned, short_run, capsys):
    with pytest.raises(SystemExit):
        train.main([*short_run, *ADALORA, "--init-adapter", str(pruned)])
    assert "--init-adapter is not for --method adalora" in capsys.readouterr().err

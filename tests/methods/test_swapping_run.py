"""Methods whose slots change their module, through the commands."""

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

ROUNDS = ["--tinit", "1", "--tfinal", "4", "--delta-t", "2"]
KINDS = {
    "elalora": ["--method", "elalora", *ROUNDS],
    "flexlora": ["--method", "flexlora", *ROUNDS],
    "pruned": ["--prune-interval", "2", "--init-warmup", "1", "--incre-interval", "1",
               "--top-h", "12"],
}  # fmt: skip


@pytest.fixture(
    scope="module",
    params=["elalora", pytest.param("flexlora", marks=pytest.mark.slow), "pruned"],
)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(scope="module")
def swapped(run_once, kind):
    return run_once(*kind)


def test_slots_change_their_module_within_the_budget(swapped):
    results = json.loads((swapped / "results.json").read_text())
    first, *rounds = lines_of(swapped, "growth")
    assert rounds
    assert max(line["total_rank"] for line in rounds) == results["total_rank"] == 24
    ranks = [list(line["ranks"].values()) for line in (first, *rounds)]
    assert (np.diff(ranks, axis=0) < 0).any()
    assert np.min(ranks) >= 1
    assert results["step_compilations"] <= 2


def test_a_stop_in_between_changes_nothing(swapped, kind, short_run, tmp_path):
    words = [*short_run, *kind, "--save-steps", "1"]
    for at in (4, 9):
        stop = SignalAt(at)
        with stop.listening(), pytest.raises(Preempted):
            train.train(parse_run(words), stop)
    train.main(words)
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (swapped / name).read_bytes()


def test_seeds_together_lose_the_same_as_alone(swapped, kind, short_words, tmp_path):
    words = [*without(short_words, "--seed"), *kind, "--seeds", "7,8"]
    train.main([*words, "--output-dir", str(tmp_path / "both")])
    alone, among = (lines_of(f, "train") for f in (swapped, tmp_path / "both" / "seed-7"))
    for name in ("loss", "total_rank"):
        values = [[line[name] for line in lines] for lines in (alone, among)]
        np.testing.assert_allclose(*values, rtol=1e-4)  # float32 sums in another order


def test_it_is_evaluated_and_exported(swapped, tmp_path, capsys):
    evaluate(["--run", str(swapped)])
    told = json.loads(capsys.readouterr().out)
    results = json.loads((swapped / "results.json").read_text())
    assert told["accuracy"] == pytest.approx(results["metrics"]["accuracy"], abs=1e-6)
    for form in ("peft", "merged", "native"):
        export(["--run", str(swapped), "--format", form, "--output-dir", str(tmp_path / form)])
        assert json.loads(capsys.readouterr().out)["format"] == form


@pytest.mark.parametrize("method", ["elalora", "flexlora", "dora"])
def test_methods_that_begin_with_no_other_adapter_say_so(run_once, short_run, method, capsys):
    words = ["--method", method, "--init-adapter", str(run_once())]
    with pytest.raises(SystemExit):
        train.main([*short_run, *words])
    assert f"--init-adapter is not for --method {method}" in capsys.readouterr().err

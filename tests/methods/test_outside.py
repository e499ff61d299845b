"""Methods and scores of somebody else, from a package that no file of ours knows."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import yaml
from flax import nnx

import increlora_jax as il
from increlora_jax import evaluate, train
from increlora_jax.config import RunConfig
from increlora_jax.core.adapter import NEVER
from increlora_jax.methods.registry import build_method
from increlora_jax.run.command_line import parse_command, parse_run
from tests.tiny import MLP, MODULES, run, start, trains_head
from tests.toy_methods import TOY

PRUNE = "toy_of_a_test:prune"
PADDED = "--pad-to-max-length"  # one program fewer to compile
OPTIONS = ["--method-options", "budget=24", "every=3", "--method", PRUNE, "--save-steps", "4"]


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    (folder / "toy_of_a_test.py").write_text(TOY, encoding="utf-8")
    return folder


@pytest.fixture
def toy(toy_folder, monkeypatch):
    monkeypatch.syspath_prepend(toy_folder)
    import toy_of_a_test

    return toy_of_a_test


def test_a_pruning_method_prunes_and_takes_a_slot_back(toy):
    method = toy.prune(MLP(), steps=14, targets=r"layers\.\d", is_trained=trains_head)
    begun = start(method, steps=14)
    history = run(begun, 14)
    totals = [int(state.total_rank) for state, _ in history]
    assert totals == [16] * 3 + [12] * 3 + [8] * 3 + [9] * 3 + [8] * 2
    assert [method.is_finished(total) for total in (16, 9, 8)] == [False, False, True]
    slots = [state.slots[MODULES[0]] for state, _ in history]
    (back,) = np.flatnonzero(slots[9].active & ~slots[8].active)
    assert slots[8].lambda_born[back] == slots[8].matrix_born[back] == NEVER
    assert slots[9].lambda_born[back] == slots[9].matrix_born[back] == 10
    lam = [float(state.params.adapter[MODULES[0]].lam[back]) for state, _ in history]
    assert lam[8] == lam[9] == lam[12] == 0 != lam[11]
    # Without moments of its first life, its first step is of the length of the learning rate.
    np.testing.assert_allclose(abs(lam[10]), history[10][1]["learning_rate"], rtol=1e-3)
    assert all(bool(info["is_finite"]) for _, info in history)


def test_prepare_trains_it_and_gives_a_model_back(toy):
    params = {"a": np.eye(6, dtype=np.float32), "b": np.eye(6, dtype=np.float32)}
    method = toy.prune(params, steps=9, config=toy.PruneConfig(budget=4, returns=99))
    trainer, state, base = il.prepare(params, method, total_steps=9)

    def loss(model, x):
        return ((x @ model["a"] @ model["b"] - 2 * x) ** 2).mean()

    @jax.jit
    def step(state, base, x):
        _, gradients = trainer.value_and_grad(loss)(state, base, x)
        return trainer.update(state, gradients)

    for seed in range(9):
        x = np.random.default_rng(seed).normal(size=(4, 6)).astype(np.float32)
        state, _ = step(state, base, x)
    assert int(state.total_rank) == 4
    assert trainer.merge(state, base)["a"].shape == (6, 6)


def left(folder):
    results = json.loads((folder / "results.json").read_text())
    tensors = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    numbers = {name: results[name] for name in ("metrics", "best_metrics", "rounds", "total_rank")}
    return numbers, tensors, (folder / "metrics.jsonl").read_bytes()


def test_a_run_by_command_is_killed_resumed_and_evaluated(
    toy, toy_folder, short_words, tmp_path, capsys
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = [*short_words, *OPTIONS, PADDED, "--output-dir"]
    path = os.pathsep.join(filter(None, [str(toy_folder), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {
        "PYTHONPATH": path,
        "TOY_DIES_IN": str(killed / "checkpoints"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # as in the process of the tests
    }
    command = [sys.executable, "-m", "increlora_jax.train", *words, str(killed)]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == -9, ended.stderr[-2000:]
    train.main([*words, str(whole)])
    said = capsys.readouterr().err
    assert "step 3: shrinks to total rank 36 of 24" in said
    assert "step 9: grows to total rank 25 of 24" in said
    train.main([*words, str(killed)])
    assert "resuming from the checkpoint of step 8" in capsys.readouterr().err
    assert left(killed) == left(whole)
    results = json.loads((whole / "results.json").read_text())
    rounds = results["rounds"]
    assert [sum(rounds[step].values()) for step in ("3", "6", "9", "12")] == [-12, -12, 1, -1]
    assert results["total_rank"] == results["rank_budget"] == 24
    saved = json.loads((whole / "adapter" / "adapter_config.json").read_text())
    assert saved["method"] == results["method"] == PRUNE
    assert yaml.safe_load((whole / "config.yaml").read_text())["method"] == PRUNE

    for other in (None, "toy_of_a_test:other"):
        with pytest.raises(il.InputError, match=rf"trained by code.*give --method {PRUNE}"):
            evaluate.evaluate(whole, method=other)
    assert evaluate.evaluate(whole, method=PRUNE) == results["metrics"]


def test_a_score_of_ones_own_decides_who_grows(toy):
    growth = {"target_rank": 2, "top_h": 1, "init_warmup": 0, "incre_interval": 2}
    settings = {"targets": r"layers\.\d", "is_trained": trains_head}
    method = il.increlora(
        MLP(),
        steps=14,
        importance=toy.wide,
        growth=il.GrowthConfig(**growth, max_rank="4"),
        **settings,
    )
    _, info = run(start(method, steps=14), 14)[-1]
    assert info["rank"].tolist() == [1, 4, 2, 1]  # the first layer has fewer inputs


def test_a_score_by_command_is_trained_with_and_not_needed_for_evaluation(
    toy, short_words, tmp_path
):
    folder = tmp_path / "run"
    code = ["--importance", "toy_of_a_test:wide"]
    train.main([*short_words, *code, PADDED, "--output-dir", str(folder)])
    results = json.loads((folder / "results.json").read_text())
    widest = {f"bert.encoder.layer.{layer}.output.dense" for layer in (0, 1)}
    assert widest <= results["rounds"]["2"].keys()
    sys.modules.pop("toy_of_a_test")
    assert evaluate.evaluate(folder) == results["metrics"]
    assert "toy_of_a_test" not in sys.modules


def test_evaluation_imports_nothing_for_a_method_of_the_table(run_once):
    with pytest.raises(il.InputError, match=rf"--method {PRUNE}: .*trained by increlora\. Leave"):
        evaluate.evaluate(run_once(), method=PRUNE)


def test_no_file_starts_code(toy, tmp_path):
    for key, code in (("method", PRUNE), ("importance", "toy_of_a_test:wide")):
        file = tmp_path / f"{key}.yaml"
        file.write_text(f"{key}: {code}\n", encoding="utf-8")
        with pytest.raises(il.InputError, match=rf"{key}.yaml:1: {key} {code} is code, .*--{key}"):
            parse_command(["--config", str(file)])
        config = parse_run(["--config", str(file), f"--{key}", code])
        assert config.flat()[key] == code


def build(method, options=None, **growth):
    adapter = il.AdapterConfig(method=method, method_options=options)
    return build_method(
        nnx.eval_shape(MLP),
        RunConfig(adapter=adapter, growth=il.GrowthConfig(**growth)),
        steps=20,
        default_targets=r"layers\.\d",
        default_modules_to_save=["head"],
    )


@pytest.mark.parametrize(
    ("method", "options", "problem"),
    [
        ("toy_not_there:prune", None, "toy_not_there cannot be imported"),
        ("toy_of_a_test:pruned", None, "has no pruned"),
        ("toy_of_a_test:NUMBER", None, "cannot be called"),
        ("toy_of_a_test:takes_nothing", None, r"must take \(model, \*, steps, adapter, growth\)"),
        ("toy_of_a_test:returns_nothing", None, "returns a NoneType"),
        ("toy_of_a_test:returns_nothing", ["a=1"], "has no argument `config`"),
        (PRUNE, ["budged=8"], r"the names of .* are budget, every, returns; did you mean budget"),
        (PRUNE, ["budget=many"], "--method-options budget=many: 'many' must be a whole number"),
        ("incre-lora", None, "--method incre-lora: unknown. Choose from .*did you mean increlora"),
    ],
)
def test_code_that_is_no_method_is_refused_by_name(toy, method, options, problem):
    with pytest.raises(il.InputError, match=problem):
        build(method, options)


@pytest.mark.parametrize(
    ("importance", "problem"),
    [
        ("toy_of_a_test:NUMBER", "--importance toy_of_a_test:NUMBER: no ImportanceFunction"),
        ("toy_of_a_test:needs_key", "missing a required argument: 'key'. A dense one gets no key"),
        ("toy_not_there:wide", "cannot be imported"),
        ("sensitivty", "no ImportanceFunction.*choose from sensitivity"),
    ],
)
def test_code_that_is_no_score_is_refused_by_name(toy, importance, problem):
    with pytest.raises(il.InputError, match=problem):
        build("increlora", importance=importance)


@pytest.mark.parametrize("word", ["a:", ":b", "a b:c", "a:b:c", "a/b:c"])
def test_a_word_that_names_no_code_is_refused(word):
    with pytest.raises(il.InputError, match=r"--method: .* must be package\.module:name"):
        parse_run(["--method", word])

"""A quantised base, layers that are computed again and layers as a loop, through the commands."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from increlora_jax import train
from increlora_jax.errors import InputError
from increlora_jax.evaluate import evaluate
from increlora_jax.models.bert import BERT
from increlora_jax.models.registry import load_model
from increlora_jax.nn.adapter_files import read_adapter_config
from increlora_jax.quantization import as_dense
from increlora_jax.run.build import plan_run, prepare_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.tasks.classification import count_tokens
from increlora_jax.training.loop import jit_step
from increlora_jax.weights.folder import name_variables, save_weights
from tests.tiny import assert_same


def spread_out(model_folder, kind, folder):
    """The same model with plain kernels that hold what the quantised ones stand for."""
    shutil.copytree(model_folder, folder)
    model, _ = load_model(model_folder, num_labels=2, quantize=kind)
    for variable in name_variables(model, nnx.Param).values():
        variable.set_value(as_dense(variable.get_value()))
    save_weights(model, folder, BERT.weights)
    return folder


SHORT = {"float32": "f32", "uint8": "u8"}
"""What XLA calls dtypes."""


def read_losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]


def read_results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(short_words, tmp_path_factory):
    """A run on a base of 4 bits, its layers computed again, and one loop."""
    folder = tmp_path_factory.mktemp("quantised") / "run"
    words = [*short_words, "--quantize-base", "int4", "--remat", "full", "--scan-layers"]
    train.main([*words, "--output-dir", str(folder)])
    return folder


def test_a_quantised_run_is_the_run_of_what_its_base_stands_for(
    finished, short_words, tiny_model, tmp_path
):
    plain = spread_out(tiny_model, "int4", tmp_path / "plain")
    words = [*short_words, "--model", str(plain), "--scan-layers"]  # with it dropout draws as there
    train.main([*words, "--output-dir", str(tmp_path / "run")])
    expected, got = read_results(tmp_path / "run"), read_results(finished)
    assert got["rounds"] == expected["rounds"]
    assert got["metrics"] == expected["metrics"]
    # Dropout is the same; 14 steps on, float32 products in another order are not.
    np.testing.assert_allclose(read_losses(finished), read_losses(tmp_path / "run"), rtol=1e-3)


def test_it_is_evaluated_on_the_base_it_was_trained_on(finished):
    assert evaluate(finished) == read_results(finished)["metrics"]
    assert read_adapter_config(finished / "adapter")["quantize_base"] == "int4"


def test_a_loop_over_layers_takes_each_array_of_all_of_them_as_one(short_run):
    run = prepare_run(plan_run(parse_run([*short_run, "--quantize-base", "int8", "--scan-layers"])))
    plain = prepare_run(plan_run(parse_run([*short_run, "--quantize-base", "int8"])))
    names = [f"bert.encoder.layer.{layer}.output.dense.kernel" for layer in range(2)]
    assert run.parts.base[tuple(names)].values.shape[0] == 2
    assert sorted(name for key in run.parts.base for name in key) == sorted(plain.parts.base)
    assert_same(run.parts.frozen(), plain.parts.base)


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_a_loop_over_layers_copies_nothing_of_the_base(short_run, kind):
    """Its stacks are what the loop runs over: none is taken apart and put together again."""
    run = prepare_run(plan_run(parse_run([*short_run, "--quantize-base", kind, "--scan-layers"])))
    layout, state = run.plan.layout, run.first_state()
    batch = layout.batch(run.batch_at(0))
    program = jit_step(run.trainer, layout, state, count_tokens).lower(
        state, run.parts.base, batch, is_scored=False
    )
    text = program.compile({"xla_backend_optimization_level": 0}).as_text()
    kernels = [leaf for leaf in jax.tree.leaves(run.parts.base) if leaf.shape[0] == 2 < leaf.ndim]
    stacks = {f"{SHORT[leaf.dtype.name]}{list(leaf.shape)}".replace(" ", "") for leaf in kernels}
    made = re.findall(r" = (\w+\[[\d,]+\])\S* (?:concatenate|copy)\(", text)
    assert len(kernels) > 5
    assert text.count(" concatenate(")
    assert not stacks & set(made)


def test_it_goes_on_with_the_same_base_only_and_computes_again_what_it_likes(finished, short_words):
    words = [*short_words, "--output-dir", str(finished), "--quantize-base"]
    with pytest.raises(InputError, match=r"quantize_base \(saved int4, given nf4\)"):
        train.train(parse_run([*words, "nf4"]))
    again = train.train(parse_run([*words, "int4", "--remat", "none"]))
    assert again == read_results(finished)


@pytest.mark.parametrize(
    "words",
    [["--method", "full"], ["--modules-to-save", "classifier", "bert.encoder.layer.0.output"]],
)
def test_what_is_trained_is_not_quantised(words, short_words, tmp_path):
    config = parse_run(
        [*short_words, *words, "--quantize-base", "int8", "--output-dir", str(tmp_path / "run")]
    )
    with pytest.raises(InputError, match=r"layer\.0\.\S+\.kernel is trained in full"):
        train.train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_a_quantised_base_is_divided_over_devices(kind, short_words, tmp_path):
    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    for mesh in ("data=4", "fsdp=2,tensor=2"):
        words = [*short_words, "--quantize-base", kind, "--mesh", mesh, "--max-steps", "8"]
        command = [sys.executable, "-m", "increlora_jax.train", *words]
        subprocess.run([*command, "--output-dir", str(tmp_path / mesh)], env=flags, check=True)
    one, other = (tmp_path / mesh for mesh in ("data=4", "fsdp=2,tensor=2"))
    assert read_results(one)["rounds"] == read_results(other)["rounds"]
    np.testing.assert_allclose(read_losses(one), read_losses(other), rtol=1e-3)

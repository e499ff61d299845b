"""Bottlenecks: their places in every family, their size as published, runs through the commands."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from transformers import AutoConfig

import increlora_jax as il
from increlora_jax import train
from increlora_jax.errors import InputError
from increlora_jax.evaluate import main as evaluate
from increlora_jax.export import main as export
from increlora_jax.models.registry import abstract_model, find_spec
from increlora_jax.nn.bottleneck import is_bottleneck
from increlora_jax.run.command_line import parse_run
from increlora_jax.runtime.signals import Preempted
from increlora_jax.weights.folder import name_variables
from tests.methods.test_adalora_run import lines_of
from tests.tiny import MLP, MODULES, without
from tests.training.test_loop import SignalAt

METHODS = {"houlsby": il.houlsby, "pfeiffer": il.pfeiffer}
DEBERTA_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072}
FAMILIES = {
    # The sublayers and the layers of a model of two layers (and two of a decoder).
    "bert": (4, 2), "roberta": (4, 2), "deberta-v2": (4, 2), "gpt2": (4, 2), "llama": (4, 2),
    "t5": (10, 4), "bart": (10, 4),
}  # fmt: skip
SMALL = {
    "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2, "num_decoder_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "hidden_size": 32, "intermediate_size": 48,
    "num_attention_heads": 2, "n_head": 2, "n_embd": 32, "d_model": 32, "num_heads": 2,
    "num_key_value_heads": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "d_ff": 48, "d_kv": 16, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 99,
    "pad_token_id": 0, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip


def build_model(model_type, **sizes):
    known = AutoConfig.for_model(model_type).to_dict()
    given = {name: value for name, value in (SMALL | sizes).items() if name in known}
    config = AutoConfig.for_model(model_type, **given)
    model = abstract_model(config, head="sequence_classification", num_labels=2)
    return model, find_spec(config)


def attach(name, model, targets, size=16):
    config = il.BottleneckConfig(adapter_size=size)
    method = METHODS[name](model, targets=targets, config=config)
    added = name_variables(method.attach(model, nnx.Rngs(0)), nnx.Param)
    return method, {path: v.get_value() for path, v in added.items() if is_bottleneck(path)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_places(family):
    for name, count in zip(METHODS, FAMILIES[family], strict=True):
        model, spec = build_model(family)
        places = spec.sublayer_ends if name == "houlsby" else spec.layer_ends
        _, added = attach(name, model, places)
        followed = {path.rpartition(".bottleneck.")[0] for path in added}
        assert len(followed) == count


@pytest.mark.parametrize(
    ("name", "size", "published"),
    # The tables of IncreLoRA (2308.12043) and AdaLoRA (2303.10512).
    [("houlsby", 8, 0.31), ("pfeiffer", 16, 0.30), ("houlsby", 16, 0.61), ("pfeiffer", 32, 0.60)],
)
def test_sizes_are_as_published(name, size, published):
    model, spec = build_model("deberta-v2", **DEBERTA_BASE)
    places = spec.sublayer_ends if name == "houlsby" else spec.layer_ends
    method, added = attach(name, model, places, size)
    count = sum(value.size for value in added.values())
    assert count / 1e6 == pytest.approx(published, abs=0.005)
    assert f"{count:,} parameters" in method.description


@pytest.mark.parametrize("name", METHODS)
def test_it_begins_as_the_base_and_only_it_and_the_head_learn(name):
    method = METHODS[name](MLP(), targets=MODULES, is_trained=lambda path: path == "head.bias")
    model = method.attach(MLP(), nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
    np.testing.assert_array_equal(model(x), MLP()(x))
    _, parts = il.split(model, method.is_trained)
    inside = [f"{p}.bottleneck.{n}" for p in MODULES
              for n in ("down.bias", "down.kernel", "up.bias", "up.kernel")]  # fmt: skip
    assert sorted(parts.head) == sorted([*inside, "head.bias"])
    assert not parts.adapters


def test_the_network_is_that_of_the_paper():
    for name, activation in (("houlsby", jax.nn.gelu), ("pfeiffer", jax.nn.relu)):
        model = METHODS[name](MLP(), targets=["layers.1"]).attach(MLP(), nnx.Rngs(0))
        layer, draw = model.layers[1], np.random.default_rng(0)
        own = layer.bottleneck
        for parameter in (own.down.kernel, own.down.bias, own.up.kernel, own.up.bias):
            parameter.set_value(jnp.asarray(draw.normal(size=parameter.shape), jnp.float32))
        x = jnp.asarray(draw.normal(size=(3, 8)), jnp.float32)
        h = x @ layer.kernel[...] + layer.bias[...]
        inner = activation(h @ own.down.kernel[...] + own.down.bias[...])
        expected = h + inner @ own.up.kernel[...] + own.up.bias[...]
        np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_places_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="need an NNX module"):
        il.houlsby({"w": jnp.ones((4, 4))})
    with pytest.raises(InputError, match="target_modules: 'query' matches no module"):
        il.houlsby(MLP(), targets=["query"])
    with pytest.raises(InputError, match="leaves none of the targets"):
        il.pfeiffer(MLP(), targets=MODULES, exclude=MODULES)
    with pytest.raises(InputError, match="layers, a List, does not say how wide"):
        il.houlsby(MLP(), targets=["layers"])


@pytest.fixture(scope="module", params=METHODS)
def ran(request, run_once):
    words = ["--method", request.param, "--adapter-size", "4"]
    return words, run_once(*words)


def test_a_stop_in_between_changes_nothing(ran, short_run, tmp_path):
    words, finished = ran
    words = [*short_run, *words, "--save-steps", "1"]
    stop = SignalAt(5)
    with stop.listening(), pytest.raises(Preempted):
        train.train(parse_run(words), stop)
    train.main(words)
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
def test_seeds_together_lose_the_same_as_alone(ran, short_words, tmp_path):
    words, _ = ran
    for seed in ("7", "8"):
        alone = [*without(short_words, "--seed"), *words, "--seed", seed]
        train.main([*alone, "--output-dir", str(tmp_path / seed)])
    words = [*without(short_words, "--seed"), *words, "--seeds", "7,8"]
    train.main([*words, "--output-dir", str(tmp_path / "both")])
    for seed in ("7", "8"):
        folders = tmp_path / seed, tmp_path / "both" / f"seed-{seed}"
        losses = [[line["loss"] for line in lines_of(folder, "train")] for folder in folders]
        np.testing.assert_allclose(*losses, rtol=1e-4)  # float32 sums in another order


def test_it_is_evaluated_and_exported_only_as_it_is(ran, toy_data, tmp_path, capsys):
    _, finished = ran
    evaluate(["--run", str(finished)])
    told = json.loads(capsys.readouterr().out)
    results = json.loads((finished / "results.json").read_text())
    assert told["accuracy"] == pytest.approx(results["metrics"]["accuracy"], abs=1e-6)
    for form in ("peft", "merged"):
        with pytest.raises(SystemExit):
            export(["--run", str(finished), "--format", form, "--output-dir", str(tmp_path / form)])
        told = capsys.readouterr().err
        assert f"--format {form}: bottlenecks are layers of their own" in told
        assert not (tmp_path / form).exists()
    export(["--run", str(finished), "--format", "native", "--output-dir", str(tmp_path / "own")])
    capsys.readouterr()
    evaluate(["--run", str(tmp_path / "own"), "--data-dir", str(toy_data)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] == pytest.approx(
        results["metrics"]["accuracy"], abs=1e-6
    )


def test_an_adapter_of_low_rank_is_no_start(ran, run_once, short_run, capsys):
    words, _ = ran
    with pytest.raises(SystemExit):
        train.main([*short_run, *words, "--init-adapter", str(run_once())])
    assert "--init-adapter is for methods with adapters" in capsys.readouterr().err

"""IncreLoRA on DeBERTa-v3's layout: end to end through the command line, and its score."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax import evaluate, train
from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.methods.increlora import increlora
from increlora_jax.models.deberta import DEBERTA, DebertaForSequenceClassification
from increlora_jax.models.fused_attention import FusableAttention
from increlora_jax.nn.skeleton import split
from increlora_jax.run import build
from increlora_jax.run.command_line import parse_run
from increlora_jax.weights.folder import read_config, save_weights
from tests.tiny import without

V3 = {
    "model_type": "deberta-v2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "relative_attention": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "initializer_range": 0.2,
}


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A tiny DeBERTa-v3 with the tokenizer of the tiny BERT."""
    folder = shutil.copytree(tiny_model, tmp_path / "deberta")
    vocab_size = read_config(tiny_model).vocab_size
    (folder / "config.json").write_text(json.dumps(V3 | {"vocab_size": vocab_size}))
    model = make_model(folder)
    save_weights(model, folder, DEBERTA.weights)
    return folder


def make_model(folder):
    config = read_config(folder)
    return DebertaForSequenceClassification(config, num_labels=2, rngs=nnx.Rngs(0))


def test_a_run_grows_to_its_budget_without_compiling_anew(folder, short_run, tmp_path):
    train.main([*short_run, "--model", str(folder)])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["rank_budget"] == results["total_rank"] == 24 == sum(results["ranks"].values())
    assert set(results["ranks"]) == {
        f"deberta.encoder.layer.{layer}.{name}"
        for layer in range(2)
        for name in (
            *(f"attention.self.{name}_proj" for name in ("query", "key", "value")),
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
    }
    assert list(results["rounds"]) == ["2", "4", "6"]
    assert results["step_compilations"] == 2  # one length bucket: scored, and not scored


@pytest.fixture
def interpret(monkeypatch):
    """Have Pallas's interpreter take the place of a GPU."""
    monkeypatch.setattr(build, "check_fused", lambda *_: None)
    monkeypatch.setattr(FusableAttention, "is_interpreted", True)


@pytest.mark.parametrize("name", ["xla", "pallas"])
def test_the_flag_chooses_what_computes_every_attention(name, folder, short_run, interpret):
    words = [*short_run, "--model", str(folder), "--attn-implementation", name]
    run = build.prepare_run(build.plan_run(parse_run(words)))
    modules = nnx.iter_modules(run.trainer.skeleton.assemble(run.parts))
    attentions = [module for _, module in modules if isinstance(module, FusableAttention)]
    assert [attention.attn_implementation for attention in attentions] == [name, name]


@pytest.mark.slow
def test_a_run_with_kernels_is_the_same_run(folder, short_run, tmp_path, interpret):
    """Of two seeds, with dropout, computed again for the gradients; evaluated without kernels."""
    words = [*without(short_run, "--seed"), "--model", str(folder), "--remat", "full"]
    words += ["--pad-to-max-length", "--seeds", "41,42"]
    losses = {}
    for name in ("xla", "pallas"):
        output = tmp_path / name
        train.main([*words, "--attn-implementation", name, "--output-dir", str(output)])
        lines = (output / "seed-42" / "metrics.jsonl").read_text().splitlines()
        losses[name] = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
        told = json.loads((output / "seed-42" / "results.json").read_text())
        assert evaluate.evaluate(output / "seed-42") == told["metrics"]
    np.testing.assert_allclose(losses["pallas"], losses["xla"], rtol=1e-3)


def test_the_score_of_a_projection_counts_tokens_and_positions(folder):
    """With s·λ̂ > 0 and no dropout, ∂L/∂ΔW is ∂L/∂W: the score by its definition."""
    method = increlora(
        make_model(folder),
        steps=20,
        targets=DEBERTA.target_modules,
        adapter=AdapterConfig(),
        growth=GrowthConfig(initial_rank=2, target_rank=3, init_warmup=1, incre_interval=2),
    )
    model = method.attach(make_model(folder), nnx.Rngs(1))
    skeleton, parts = split(model, method.is_trained)
    grown = {name: a._replace(lam=jnp.full_like(a.lam, 0.5)) for name, a in parts.adapters.items()}
    ids = jnp.asarray(np.random.default_rng(0).integers(1, 14, (2, 9)))
    mask = jnp.ones_like(ids).at[1, 6:].set(0)

    @jax.jit
    def differentiate(base, probes):
        def loss(base, probes):
            whole = parts._replace(adapters=grown, base=base)
            model = skeleton.assemble(whole, None, probes)
            return jnp.square(model(ids, mask, ids)).sum()

        return jax.grad(loss, argnums=(0, 1))(base, probes)

    gradients, scores = differentiate(parts.base, method.probes(grown, False))
    layers = dict(nnx.iter_modules(skeleton.assemble(parts._replace(adapters=grown))))
    for name, score in scores.items():
        path = tuple(int(part) if part.isdigit() else part for part in re.split(r"\.", name))
        delta, gradient = layers[path].adapter.update.delta, gradients[f"{name}.kernel"]
        expected = jnp.abs(delta * gradient).sum() / np.sqrt(delta.size)
        np.testing.assert_allclose(score.value, expected, rtol=1e-4, err_msg=name)

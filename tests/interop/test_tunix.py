"""Tunix's own trainer over its own models: growth in its optimizer and in its checkpoints."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import qwix
from flax import nnx
from tunix.models.gemma3 import model as gemma3
from tunix.models.llama3 import model as llama3
from tunix.models.qwen3 import model as qwen3
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput

import increlora_jax as il
from increlora_jax.errors import InputError
from increlora_jax.interop import tunix

STEPS, ROWS, LENGTH, VOCABULARY, RATE = 30, 4, 8, 32, 3e-2
GROWTH = il.GrowthConfig(target_rank=2, top_h=6, init_warmup=4, incre_interval=4)
SIZES = {
    "num_layers": 2, "vocab_size": VOCABULARY, "embed_dim": 16, "hidden_dim": 32,
    "num_heads": 4, "head_dim": 4, "num_kv_heads": 2, "norm_eps": 1e-6, "rope_theta": 10_000,
}  # fmt: skip


def make_qwen3():
    return qwen3.Qwen3(qwen3.ModelConfig(**SIZES, param_dtype=jnp.float32), rngs=nnx.Rngs(0))


def make_llama3():
    return llama3.Llama3(llama3.ModelConfig(**SIZES, weight_tying=False), rngs=nnx.Rngs(0))


def make_gemma3():
    sizes = {k: v for k, v in SIZES.items() if k not in ("vocab_size", "norm_eps", "rope_theta")}
    config = gemma3.ModelConfig(
        num_embed=VOCABULARY, sliding_window_size=8, param_dtype=jnp.float32, **sizes
    )  # fmt: skip
    return gemma3.Gemma3(config, rngs=nnx.Rngs(0))


def batches(first=0):
    """Count upwards from random numbers."""
    for t in range(first, STEPS):
        start = np.random.default_rng(t).integers(0, VOCABULARY, (ROWS, 1))
        tokens = (start + np.arange(LENGTH)) % VOCABULARY
        yield TrainingInput(tokens, np.ones((ROWS, LENGTH), np.int32))


def inputs(batch):
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), (ROWS, LENGTH, LENGTH))
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))
    return {"input_tokens": batch.input_tokens, "input_mask": batch.input_mask,
            "positions": positions, "attention_mask": causal}  # fmt: skip


def logits(model):
    given = inputs(next(batches()))
    found, _ = model(given["input_tokens"], given["positions"], None, given["attention_mask"])
    return np.asarray(found, np.float32)


def make_qwix():
    """Qwen3 with the LoRA that tunix's own examples give it."""
    rule = qwix.LoraProvider(module_path=".*(q_proj|gate_proj|down_proj)", rank=6, alpha=12.0)
    given = inputs(next(batches()))
    words = (given["input_tokens"], given["positions"], None, given["attention_mask"])
    return qwix.apply_lora_to_model(make_qwen3(), rule, *words, rngs=nnx.Rngs(1))


def trainer_of(kind, model, folder=None, traces=None):
    config = TrainingConfig(
        eval_every_n_steps=1000, max_steps=STEPS,
        checkpoint_root_directory=str(folder) if folder else None,
    )  # fmt: skip
    if kind == "own score":
        trainer = tunix.IncreLoraPeftTrainer(model, optax.adamw(RATE), config, GROWTH)
    else:
        growth = replace(GROWTH, importance="lambda_gradient")
        pairs = None
        if kind == "pairs of qwix":
            growth, pairs = replace(growth, top_h=2), il.Pairs(scale=12.0 / 6)
        grow = il.growth(model, optax.adamw(RATE), steps=STEPS, growth=growth, pairs=pairs)
        trainer = PeftTrainer(model, grow, config)

    def traced(batch):
        if traces is not None:
            traces.append(batch)
        return inputs(batch)

    return trainer.with_gen_model_input_fn(traced)


def frozen_of(model):
    return nnx.state(model, nnx.filterlib.All(nnx.Param, nnx.filterlib.Not(nnx.LoRAParam)))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_qwen3, "own score"),
        (make_llama3, "transformation"),
        (make_gemma3, "own score"),
        pytest.param(make_qwen3, "transformation", marks=pytest.mark.slow),
        pytest.param(make_llama3, "own score", marks=pytest.mark.slow),
        pytest.param(make_gemma3, "transformation", marks=pytest.mark.slow),
    ],
)
def test_tunix_trains_growing_ranks(make, kind):
    model = make()
    before = jax.tree.map(jnp.copy, frozen_of(model))
    traces = []
    trainer = trainer_of(kind, model, traces=traces)
    modules = len(il.ranks_of(trainer.optimizer))
    trainer.train(list(batches()))
    losses = trainer.metrics_logger.get_metric_history("", "loss", "train")
    assert len(losses) == STEPS
    fall = 1 if make is make_gemma3 else 0.9  # that model's output is small at first
    assert losses[-1] < fall * losses[0]
    ranks = il.ranks_of(trainer.optimizer)
    assert sum(ranks.values()) == 2 * modules
    assert max(ranks.values()) > 1
    assert len(traces) == 1
    assert jax.tree.all(jax.tree.map(np.array_equal, before, frozen_of(model)))
    shown = logits(model)
    merged = logits(il.merge(il.settle(model, trainer.optimizer)))
    np.testing.assert_allclose(merged, shown, atol=1e-5 * max(1, np.abs(shown).max()))


def test_tunix_grows_the_lora_of_qwix():
    model, traces = make_qwix(), []
    before = jax.tree.map(jnp.copy, frozen_of(model))
    trainer = trainer_of("pairs of qwix", model, traces=traces)
    trainer.train(list(batches()))
    losses = trainer.metrics_logger.get_metric_history("", "loss", "train")
    assert losses[-1] < 0.9 * losses[0]
    ranks = il.ranks_of(trainer.optimizer)
    assert sorted(ranks)[0] == "layers.0.attn.q_proj.w"
    assert sum(ranks.values()) == 2 * len(ranks) == 12
    assert max(ranks.values()) > 1
    assert len(traces) == 1
    assert jax.tree.all(jax.tree.map(np.array_equal, before, frozen_of(model)))
    shown = logits(model)
    np.testing.assert_allclose(logits(il.settle(model, trainer.optimizer)), shown, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("own score", make_qwen3),
        ("transformation", make_qwen3),
        ("pairs of qwix", make_qwix),
    ],
)
def test_tunix_resumes_growth_from_its_own_checkpoints(kind, make, tmp_path):
    whole = trainer_of(kind, make(), tmp_path / "whole")
    whole.train(list(batches()))
    half = STEPS // 2
    first = trainer_of(kind, make(), tmp_path / "parts")
    first.train(list(batches())[:half])
    first.close()
    assert first.train_steps == half
    second = trainer_of(kind, make(), tmp_path / "parts")
    assert second.train_steps == half
    assert il.ranks_of(second.optimizer) == il.ranks_of(first.optimizer)
    second.train(list(batches()))
    assert il.ranks_of(second.optimizer) == il.ranks_of(whole.optimizer)
    pairs = (nnx.state(t.model, nnx.LoRAParam) for t in (whole, second))
    assert jax.tree.all(jax.tree.map(np.array_equal, *pairs))


def test_other_growth_than_that_of_the_checkpoint_is_refused(tmp_path):
    first = trainer_of("own score", make_qwen3(), tmp_path)
    first.train(list(batches())[:2])
    first.close()
    config = TrainingConfig(
        eval_every_n_steps=9, max_steps=STEPS, checkpoint_root_directory=str(tmp_path)
    )
    other = replace(GROWTH, incre_interval=5)
    with pytest.raises(InputError, match="the checkpoint has other settings of growth"):
        tunix.IncreLoraPeftTrainer(make_qwen3(), optax.adamw(RATE), config, other)


def test_micro_batches_are_not_scored_in_part():
    config = TrainingConfig(eval_every_n_steps=9, max_steps=STEPS, gradient_accumulation_steps=2)
    with pytest.raises(InputError, match="only the last micro-batch"):
        tunix.IncreLoraPeftTrainer(make_qwen3(), optax.adamw(RATE), config, GROWTH)


def test_a_missing_tunix_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "tunix.sft.peft_trainer", None)
    with pytest.raises(InputError, match=r"needs tunix.*experiments/examples/README\.md"):
        _ = tunix.IncreLoraPeftTrainer
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        _ = tunix.Other

"""Layers that are computed again: the same numbers, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from transformers import AutoConfig

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.methods.increlora import increlora
from increlora_jax.models.registry import find_spec
from increlora_jax.models.remat import RematLayer, set_remat
from increlora_jax.training.loss import sequence_loss
from tests.families import FAMILIES, SMALL
from tests.tiny import assert_same, run, start

STEPS, ROWS, LENGTH = 6, 2, 5
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers")


def make_model(family, dtype=jnp.float64, **changes):
    """A model of two layers, or two in each stack, with dropout everywhere it can be."""
    depths = dict.fromkeys(FAMILIES[family].keys() & set(DEPTHS), 2)
    dropout = {"attention_dropout": 0.1}  # the others have theirs by default
    config = AutoConfig.for_model(
        family, **(SMALL | FAMILIES[family] | depths | dropout | {"vocab_size": 50} | changes)
    )
    spec = find_spec(config)
    build = spec.heads["sequence_classification"]
    model = build(config, num_labels=2, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    return model, spec


def rows_of(seed, length=LENGTH):
    draw = np.random.default_rng(seed)
    ids = draw.integers(4, 50, (ROWS, length))
    mask = np.ones_like(ids)
    mask[0, -2:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return batch | {"labels": np.array([0, 1]), "weight": np.ones(ROWS)}


def begin(family, remat, dtype=jnp.float64, **changes):
    """A run in which every module grows."""
    model, spec = make_model(family, dtype, **changes)
    set_remat(model, remat)
    method = increlora(
        model,
        steps=STEPS,
        targets=spec.target_modules,
        adapter=AdapterConfig(lora_dropout=0.1),
        growth=GrowthConfig(target_rank=1.5, top_h=4, init_warmup=0, incre_interval=1),
        is_trained=lambda path: path.startswith(spec.modules_to_save),
        dtype=dtype,
    )
    return start(method, steps=STEPS, dtype=dtype, model=model, loss=sequence_loss(False))


def close(got, expected):
    """Alike but for the order of additions."""
    if jnp.issubdtype(expected.dtype, jnp.floating):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)
    else:
        assert_same(got, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_changes_no_loss_no_gradient_no_dropout_and_no_score(family):
    with jax.enable_x64(True):
        begun = {remat: begin(family, remat) for remat in ("none", "dots", "full")}

        def differentiate(start):
            def loss(model, batch):
                return start.trainer.loss(model, batch)[0]

            # A λ of 0 has nothing to score.
            adapters = start.state.params.adapter
            moved = {name: a._replace(lam=a.lam + 0.5) for name, a in adapters.items()}
            state = start.state._replace(params=start.state.params._replace(adapter=moved))
            of_all = start.trainer.value_and_grad(loss)
            return jax.jit(of_all)(state, start.parts.base, rows_of(0))

        plain = differentiate(begun["none"])
        assert all(np.any(score) for score in plain[1].evidence.values())
        for remat in ("dots", "full"):
            jax.tree.map(close, differentiate(begun[remat]), plain)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_ranks_grow_alike(remat):
    with jax.enable_x64(True):
        plain, again = (run(begin("bert", each), STEPS, rows_of) for each in ("none", remat))
    for (_, expected), (_, got) in zip(plain, again, strict=True):
        np.testing.assert_array_equal(got["rank"], expected["rank"])
        np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-9)
    assert plain[-1][1]["total_rank"] > plain[0][1]["total_rank"]


def count(jaxpr, name):
    """How often an operation occurs, inside of others too."""
    own = sum(equation.primitive.name == name for equation in jaxpr.eqns)
    return own + sum(count(inner, name) for inner in jax.core.subjaxprs(jaxpr))


def traced(family, remat):
    begun = begin(family, remat, jnp.float32)
    step = begun.trainer.step
    return jax.make_jaxpr(lambda s, base, rows: step(s, base, rows, is_scored=True))(
        begun.state, begun.parts.base, rows_of(0)
    ).jaxpr


@pytest.mark.parametrize("family", FAMILIES)
def test_every_repeated_layer_takes_part_and_none_unasked(family):
    model, _ = make_model(family, jnp.float32)
    layers = [module for _, module in nnx.iter_modules(model) if isinstance(module, RematLayer)]
    assert len(layers) == (4 if family in ("t5", "bart") else 2)
    name = "remat2" if count(traced(family, "full"), "remat2") else "checkpoint"
    assert count(traced(family, "none"), name) == 0
    assert count(traced(family, "full"), name) >= len(layers)


def test_memory_is_saved_in_the_order_of_the_policies():
    """A BERT of eight layers, its activations much larger than its weights."""
    temporary = {}
    for remat in ("none", "dots", "full"):
        begun = begin("bert", remat, jnp.float32, num_hidden_layers=8, max_position_embeddings=512)
        batch = rows_of(0, 256)
        lowered = begun.step.lower(begun.state, begun.parts.base, batch, is_scored=False)
        temporary[remat] = lowered.compile().memory_analysis().temp_size_in_bytes
    assert temporary["dots"] < 0.6 * temporary["none"]
    assert temporary["full"] < 0.8 * temporary["dots"]

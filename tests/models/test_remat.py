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
from tests.memory import SAVING
from tests.tiny import assert_same, start

STEPS, ROWS = 4, 2
QUICK = {"xla_backend_optimization_level": 0}
"""The same program; less of the time goes into compiling it."""


def make_model(family, dtype=jnp.float64, **changes):
    """A model with dropout everywhere it can be."""
    settings = SMALL | FAMILIES[family] | {"vocab_size": 50, "attention_dropout": 0.1} | changes
    config = AutoConfig.for_model(family, **settings)
    spec = find_spec(config)
    build = spec.heads["sequence_classification"]
    model = build(config, num_labels=2, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    return model, spec


def rows_of(seed, length=5):
    ids = np.random.default_rng(seed).integers(4, 50, (ROWS, length))
    mask = np.ones_like(ids)
    mask[0, -2:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return batch | {"labels": np.array([0, 1]), "weight": np.ones(ROWS)}


def begin(family, remat, dtype=jnp.float64, **changes):
    """A run whose every λ is away from 0, so that there is something to score."""
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
    begun = start(method, steps=STEPS, dtype=dtype, model=model, loss=sequence_loss(False))
    params = begun.state.params
    moved = {name: each._replace(lam=each.lam + 0.5) for name, each in params.adapter.items()}
    return begun._replace(state=begun.state._replace(params=params._replace(adapter=moved)))


def lower(begun, batch, **options):
    """The loss and its gradients as a program."""

    def loss(model, batch):
        return begun.trainer.loss(model, batch)[0]

    of_all = jax.jit(begun.trainer.value_and_grad(loss), static_argnames="is_scored")
    return of_all.lower(begun.state, begun.parts.base, batch, **options)


def differentiate(family, remat):
    begun, batch = begin(family, remat), rows_of(0)
    program = lower(begun, batch, is_scored=True).compile(compiler_options=QUICK)
    return program(begun.state, begun.parts.base, batch)


def assert_close(got, expected):
    """Alike but for the order of additions."""
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("family", "remats"),
    [
        ("bert", ["dots", "full"]),
        *((family, ["full"]) for family in ("llama", "t5")),
        *(
            pytest.param(family, ["full"], marks=pytest.mark.slow)
            for family in ("roberta", "deberta-v2", "gpt2", "bart")
        ),
    ],
)
def test_it_changes_no_loss_no_gradient_no_dropout_and_no_score(family, remats):
    with jax.enable_x64(True):
        plain = differentiate(family, "none")
        assert all(np.any(score) for score in plain[1].evidence.values())
        for remat in remats:
            jax.tree.map(assert_close, differentiate(family, remat), plain)


def train(remat):
    begun = begin("bert", remat)
    state, base, infos = begun.state, begun.parts.base, []
    lowered = begun.step.lower(state, base, rows_of(0), is_scored=True)
    step = lowered.compile(compiler_options=QUICK)
    for seed in range(STEPS):
        state, info = step(state, base, rows_of(seed))
        infos.append(info)
    return infos


@pytest.mark.slow
def test_ranks_grow_alike():
    with jax.enable_x64(True):
        plain, again = train("none"), train("full")
    for expected, got in zip(plain, again, strict=True):
        assert_same(got["rank"], expected["rank"])
        np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-9)
    assert plain[-1]["total_rank"] > plain[0]["total_rank"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_repeated_layer_takes_part_and_none_unasked(family):
    model, _ = make_model(family, jnp.float32)
    layers = [module for _, module in nnx.iter_modules(model) if isinstance(module, RematLayer)]
    assert len(layers) == (2 if family in ("t5", "bart") else 1)
    barriers = {}  # one around each layer that is computed again, besides those of the adapters
    for remat in ("none", "full"):
        program = lower(begin(family, remat, jnp.float32), rows_of(0), is_scored=False)
        barriers[remat] = program.as_text().count("barrier")
    assert barriers["full"] - barriers["none"] == len(layers)


DEEP = {
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
"""A BERT whose activations are much larger than its weights."""


def kept_bytes(remat):
    """What the forward pass leaves for the backward pass, weights and state not counted."""
    begun, batch = begin("bert", remat, jnp.float32, **DEEP), rows_of(0, 256)

    def residuals(state, base):
        def loss(params):
            model = begun.trainer.skeleton.assemble(
                begun.trainer.parts(state._replace(params=params), base), state.key
            )
            return begun.trainer.loss(model, batch)[0]

        given = jax.tree.leaves((state, base))
        kept = jax.tree.leaves(jax.vjp(loss, state.params)[1])
        return [leaf for leaf in kept if not any(leaf is one for one in given)]

    return sum(
        x.size * x.dtype.itemsize for x in jax.eval_shape(residuals, begun.state, begun.parts.base)
    )


def test_less_is_kept_for_the_backward_pass_in_the_order_of_the_policies():
    none, dots, full = (kept_bytes(remat) for remat in ("none", "dots", "full"))
    assert dots < 0.2 * none
    assert full < 0.1 * dots


def test_the_compiled_program_takes_less_memory():
    none, full = (
        lower(begin("bert", remat, jnp.float32, **DEEP), rows_of(0, 256), is_scored=False)
        .compile(compiler_options=QUICK | SAVING)
        .memory_analysis()
        .temp_size_in_bytes
        for remat in ("none", "full")
    )
    assert full < 0.7 * none

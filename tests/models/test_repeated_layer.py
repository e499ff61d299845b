"""Layers that are computed again: the same numbers, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.models.repeated_layer import RepeatedLayer
from tests.families import FAMILIES
from tests.memory import SAVING
from tests.repeated import (
    QUICK,
    STEPS,
    assert_close,
    begin,
    differentiate,
    lower,
    make_model,
    rows_of,
)
from tests.tiny import assert_same


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
        assert all(np.any(score.value) for score in plain[1].evidence.values())
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
    layers = [module for _, module in nnx.iter_modules(model) if isinstance(module, RepeatedLayer)]
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

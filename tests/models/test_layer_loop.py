"""Layers as a loop: the same numbers, of a program that has them once."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.models.layer_loop import set_scanned
from increlora_jax.nn.layers import ADAPTED_TYPES
from tests.families import FAMILIES
from tests.memory import SAVING
from tests.repeated import (
    QUICK,
    assert_close,
    begin,
    differentiate,
    lower,
    make_model,
    mean_loss,
    rows_of,
)

DEEP = {
    "gpt2": {"n_layer": 3},
    "t5": {"num_layers": 3, "num_decoder_layers": 3},
    "bart": {"encoder_layers": 3, "decoder_layers": 3},
}


def deep(family, layers=3):
    changes = DEEP.get(family, {"num_hidden_layers": 3})
    return dict.fromkeys(changes, layers)


@pytest.mark.parametrize(
    ("family", "remat", "changes"),
    [
        ("bert", "full", {}),
        pytest.param("bert", "none", {}, marks=pytest.mark.slow),
        pytest.param("deberta-v2", "none", {"conv_kernel_size": 3}, marks=pytest.mark.slow),
        *(
            pytest.param(family, "dots", {}, marks=pytest.mark.slow)
            for family in ("roberta", "deberta-v2", "gpt2", "llama", "qwen3", "bart", "t5")
        ),
    ],
)
def test_it_changes_no_loss_no_gradient_no_dropout_and_no_score(family, remat, changes):
    how = deep(family) | changes | {"loss": mean_loss}
    with jax.enable_x64(True):
        plain = differentiate(family, "none", **how)
        assert all(np.any(score.value) for score in plain[1].evidence.values())
        scanned = differentiate(family, remat, is_scanned=True, is_called_once=True, **how)
    jax.tree.map(assert_close, scanned, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_adapted_layer_is_called_once(family, monkeypatch):
    """Else a score where the backward pass comes to a layer would be that of one of its calls."""
    begun, calls = begin(family, "none", jnp.float32), Counter()
    for kind in ADAPTED_TYPES.values():

        def counted(self, *args, own=kind.__call__, **options):
            calls[id(self)] += 1
            return own(self, *args, **options)

        monkeypatch.setattr(kind, "__call__", counted)

    def loss(params):
        parts = begun.trainer.parts(begun.state._replace(params=params), begun.parts.base)
        model = begun.trainer.skeleton.assemble(parts, begun.state.key)
        return begun.trainer.loss(model, rows_of(0))

    jax.eval_shape(loss, begun.state.params)
    assert list(calls.values()) == [1] * len(begun.trainer.skeleton.modules)


def count_loops(family, **changes):
    """Loops of a forward pass over layers; the random numbers of dropout are no loop here."""
    model, _ = make_model(family, jnp.float32, **changes)
    set_scanned(model)
    model.eval()
    batch = {k: v for k, v in rows_of(0).items() if k not in ("labels", "weight")}
    graphdef, state = nnx.split(model)
    text = str(jax.make_jaxpr(lambda state: nnx.merge(graphdef, state)(**batch))(state))
    return text.count(" scan[")


@pytest.mark.parametrize(
    ("family", "changes", "loops"),
    [
        *((family, {}, 1) for family in ("bert", "roberta", "deberta-v2", "gpt2", "llama")),
        *((family, {}, 2) for family in ("t5", "bart")),
        ("deberta-v2", {"conv_kernel_size": 3}, 1),  # after the first
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, 0),  # no two alike
    ],
)
def test_layers_that_are_alike_are_one_loop(family, changes, loops):
    assert count_loops(family, **deep(family), **changes) == loops


def test_a_program_does_not_grow_with_the_number_of_layers():
    def size(layers, is_scanned):
        how = deep("bert", layers) | {"is_called_once": True}
        begun = begin("bert", "none", jnp.float32, is_scanned=is_scanned, **how)
        lowered = lower(begun, rows_of(0), is_scored=True)
        return lowered.as_text().count("dot_general")

    assert size(3, True) == size(6, True)
    assert size(3, False) < size(6, False)


WIDE = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3}
"""A BERT whose dense gradients are much larger than its activations."""


def scored_bytes(**how):
    begun = begin("bert", "full", jnp.float32, **how, **WIDE)
    program = lower(begun, rows_of(0), is_scored=True).compile(compiler_options=QUICK | SAVING)
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("is_scanned", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_dense_gradient_at_a_time_is_held_where_layers_are_called_once(is_scanned):
    all_of_them, one = (
        scored_bytes(is_scanned=is_scanned, is_called_once=once) for once in (False, True)
    )
    gradients = 4 * 3 * (4 * 64**2 + 2 * 64 * 256)
    is_older = jax.__version_info__ < (0, 10)  # whose compiler reuses a little less
    assert all_of_them - one > (0.65 if is_older else 0.7) * gradients

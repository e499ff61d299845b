"""Probes through the transformations that a training step applies to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.core.adapter import Scaling, effective_update
from increlora_jax.core.importance import sensitivity
from increlora_jax.core.probe import DenseProbe, ScoreProbe, SlotProbe
from increlora_jax.core.product import apply_update
from increlora_jax.core.stacking import Groups

IN, SLOTS, OUT, LAYERS = 11, 4, 13, 3  # all different: a shape tells what an array is

MAKE = {
    "score": lambda stack: ScoreProbe.of(sensitivity, jnp.zeros(stack)),
    "dense": lambda stack: DenseProbe(jnp.zeros((*stack, IN, OUT))),
    "slots": lambda stack: SlotProbe(jnp.zeros((*stack, SLOTS))),
}


@pytest.fixture(params=MAKE)
def make(float64, request):
    return MAKE[request.param]


@pytest.fixture
def updates(float64, make_adapter, make_slots):
    adapter = make_adapter(IN, SLOTS, OUT, stack=(LAYERS,))
    return effective_update(adapter, make_slots(["arad", "aaar", "addd"]), Scaling(16))


@pytest.fixture
def x(float64):
    return jnp.asarray(np.random.default_rng(1).normal(size=(5, IN)))


def layer_of(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def loss(probe, update, x):
    return jnp.sum(jnp.sin(apply_update(x, update, probe)))


def test_the_gradient_of_a_probe_is_a_probe_of_the_same_kind(make, updates, x):
    probe = make(())
    _, gradient = jax.value_and_grad(loss)(probe, layer_of(updates, 0), x)
    assert type(gradient) is type(probe)
    assert jax.tree.structure(gradient) == jax.tree.structure(probe)
    assert gradient.value.shape == probe.value.shape
    assert np.any(gradient.value)


def test_members_of_a_vmap_and_layers_of_a_scan_have_each_their_own(make, updates, x):
    def over_layers(probes):
        def add(total, layer):
            return total + loss(*layer, x), None

        return jax.lax.scan(add, 0.0, (probes, updates))[0]

    scanned = jax.grad(over_layers)(make((LAYERS,)))
    mapped = jax.vmap(jax.grad(loss), in_axes=(0, 0, None))(make((LAYERS,)), updates, x)
    for index in range(LAYERS):
        alone = jax.grad(loss)(make(()), layer_of(updates, index), x)
        for several in (scanned, mapped):
            assert type(several) is type(alone)
            np.testing.assert_allclose(several.value[index], alone.value, rtol=1e-12)


def test_probes_of_modules_of_one_shape_are_stacked_and_taken_apart(make):
    probes = {name: make(()) for name in "ab"}
    groups = Groups(probes)
    stacked = groups.stack(probes)
    assert {key: type(probe) for key, probe in stacked.items()} == {("a", "b"): type(probes["a"])}
    assert stacked["a", "b"].value.shape == (2, *probes["a"].value.shape)
    again = groups.unstack(stacked)
    assert jax.tree.structure(again) == jax.tree.structure(probes)


def test_a_score_that_is_another_one_makes_another_program():
    one, other = (ScoreProbe.of(score, jnp.zeros(())) for score in (sensitivity, max))
    assert jax.tree.structure(one) != jax.tree.structure(other)
    assert jax.tree.structure(one) == jax.tree.structure(MAKE["score"](()))

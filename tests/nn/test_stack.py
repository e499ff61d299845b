"""Layers stacked by `nnx.vmap` and run by `nnx.scan`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.errors import InputError
from increlora_jax.nn.any_model import attach, plan_targets
from increlora_jax.nn.skeleton import split

LAYERS = 3


class Stack(nnx.Module):
    def __init__(self, axes=0):
        keys = jax.random.split(jax.random.key(0), LAYERS)
        make = nnx.vmap(lambda key: nnx.LinearGeneral(4, (2, 2), rngs=nnx.Rngs(key)))
        self.layers, self.axes = make(keys), nnx.static(axes)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, self.axes), out_axes=nnx.Carry)
        def run(x, layer):
            return layer(x).reshape(x.shape)

        return run(x, self.layers)


@pytest.fixture
def make(scaling):
    def make(axes=0, **settings):
        return attach(Stack(axes), "layers", scaling=scaling, rngs=nnx.Rngs(1), **settings)

    return make


def test_each_layer_of_a_stack_has_a_name_and_slots_of_its_own(make):
    names = [f"layers[{index}]" for index in range(LAYERS)]
    assert plan_targets(Stack(), "layers").sizes == dict.fromkeys(names, (4, 4))
    own = make(max_rank=dict.fromkeys(names, 3), initial_rank=2).layers.adapter
    assert own.A.shape == (LAYERS, 4, 3)
    assert own.slots.rank.tolist() == [2] * LAYERS
    assert len({float(a) for a in own.A[:, 0, 0]}) == LAYERS


def test_each_layer_of_a_stack_drops_inputs_of_its_own(make):
    skeleton, parts = split(make(dropout=0.5), lambda path: False)
    parts = parts._replace(adapters=jax.tree.map(jnp.ones_like, parts.adapters))
    x = jnp.ones((2, 4))
    first, again, other = (skeleton.assemble(parts, jax.random.key(k))(x) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    keys = skeleton.assemble(parts, jax.random.key(1)).layers.adapter.dropout.rngs.key[...]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == LAYERS


def test_a_stack_whose_masks_are_not_sliced_is_refused(make):
    with pytest.raises(InputError, match=r"it must slice all of its state, as in_axes=0 does"):
        make(nnx.StateAxes({nnx.Param: 0, ...: None}))(jnp.ones((2, 4)))

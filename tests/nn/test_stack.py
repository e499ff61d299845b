"""Layers stacked by `nnx.vmap` and run by `nnx.scan`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import increlora_jax as il
from increlora_jax.errors import InputError
from increlora_jax.nn.any_model import attach, plan_targets
from increlora_jax.nn.skeleton import split

LAYERS, WIDTH = 3, 8


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


def test_a_stack_whose_dropout_is_not_sliced_is_refused(make):
    axes = nnx.StateAxes({(nnx.Param, il.SlotState): 0, ...: None})
    with pytest.raises(InputError, match=r"\(nnx\.Param, il\.SlotState, nnx\.RngState\): 0"):
        make(axes, dropout=0.5)(jnp.ones((2, 4)))


@pytest.mark.parametrize("is_called_once", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_filters_slice_a_scored_stack_as_a_plain_axis_does(make, dropout, is_called_once):
    found = []
    for axes in (0, nnx.StateAxes({(nnx.Param, il.SlotState, nnx.RngState): 0})):
        model = Stack(axes)
        method = il.increlora(model, steps=9, adapter=il.AdapterConfig(lora_dropout=dropout))
        trainer, state, base = il.prepare(
            model, method, total_steps=9, is_called_once=is_called_once
        )
        differentiate = trainer.value_and_grad(lambda model, x: jnp.sum(model(x) ** 2))
        for _ in range(2):
            _, gradients = differentiate(state, base, jnp.ones((2, 4)))
            state, info = trainer.update(state, gradients)
        found.append((gradients.params.adapter, info["sensitivity"]))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert all(found[0][1] > 0)


def test_a_stack_along_another_axis_is_refused():
    make = nnx.vmap(lambda key: nnx.Linear(4, 6, rngs=nnx.Rngs(key)), out_axes=1)
    model = nnx.Dict(layers=make(jax.random.split(jax.random.key(0), LAYERS)))
    with pytest.raises(InputError, match=r"\[4, 3, 6\], which does not end with its own \[4, 6\]"):
        attach(model, "layers")


class AlongAxis(nnx.Module):
    """Layers whose kernels are stacked along an axis of choice."""

    def __init__(self, axis):
        self.axes = nnx.static(nnx.StateAxes({nnx.Param: axis, ...: 0}))
        options = {"use_bias": False, "param_dtype": jnp.float64}
        make = lambda key: nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(key), **options)  # noqa: E731
        self.layers = nnx.vmap(make, out_axes=self.axes)(jax.random.split(jax.random.key(0), 3))

    def __call__(self, x):
        scan = nnx.scan(in_axes=(self.axes, nnx.Carry), out_axes=nnx.Carry)
        return scan(lambda layer, x: jnp.tanh(layer(x)))(self.layers, x)


def train_pytree(axis):
    """Train the state of a module, whose kernels stack along an axis; return losses and ranks."""
    graphdef, state = nnx.split(AlongAxis(axis))
    params = nnx.to_pure_dict(state)
    inputs = 1 - axis
    parameters = {r"layers\.kernel": il.KernelAxes((inputs,), (2,))}
    growth = il.GrowthConfig(target_rank=2, top_h=1, init_warmup=1, incre_interval=1)
    method = il.increlora(params, steps=8, growth=growth, parameters=parameters, dtype=jnp.float64)
    trainer, state, base = il.prepare(params, method, total_steps=8, dtype=jnp.float64)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, WIDTH)))

    def loss(params):
        moved = nnx.State(jax.tree.map(nnx.Param, params))
        return jnp.mean(jnp.square(nnx.merge(graphdef, moved)(x) - 1))

    @jax.jit
    def step(state):
        value, gradients = trainer.value_and_grad(loss)(state, base)
        state, info = trainer.update(state, gradients)
        return state, (value, info["rank"], info["importance"])

    told = []
    for _ in range(8):
        state, found = step(state)
        told.append(found)
    merged = trainer.merge(state, base)
    kernel = jnp.moveaxis(merged["layers"]["kernel"], axis, 0)
    return told, kernel, loss(merged) - trainer.predict(state, base, loss)


def test_a_pytree_stacks_along_any_axis(float64):
    first, second = (train_pytree(axis) for axis in (0, 1))
    assert sum(first[0][-1][1]) == 6
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)  # noqa: E731
    jax.tree.map(close, first, second)
    assert first[2] == 0

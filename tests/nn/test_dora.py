"""Layers with lengths that learn, beside the formula on dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import increlora_jax as il
from increlora_jax.errors import InputError
from increlora_jax.nn.attach import adapted_layers
from increlora_jax.nn.dora import column_norms
from tests.tiny import MLP, MODULES

GROWTH = il.GrowthConfig(target_rank=3)


@pytest.fixture
def float64():
    """Compute in double precision."""
    with jax.enable_x64(True):
        yield


def build(dtype=jnp.float32, model=None, **given):
    method = il.dora(model or MLP(dtype), targets=MODULES, growth=GROWTH, dtype=dtype, **given)
    return method, method.attach(model or MLP(dtype), nnx.Rngs(1))


def disturb(model, seed=0):
    """Give B, m and the biases other values."""
    draw = np.random.default_rng(seed)
    for layer in adapted_layers(model).values():
        for parameter in (layer.adapter.B, layer.magnitude, layer.bias):
            value = parameter.get_value()
            parameter.set_value(value + jnp.asarray(draw.normal(size=value.shape), value.dtype))
    return model


def dense(model, x):
    """The network with dense kernels; the norm is outside of the gradient."""
    layers = adapted_layers(model)
    for path in MODULES:
        layer = layers[path]
        kernel = vars(layer)["kernel"].get_value() + layer.adapter.update.delta
        length = jax.lax.stop_gradient(jnp.linalg.norm(kernel, axis=0))
        x = jnp.tanh(x @ (kernel * layer.magnitude[...] / length) + layer.bias[...])
    return x @ model.head.kernel[...] + model.head.bias[...]


def test_it_begins_as_the_base():
    _, model = build()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
    np.testing.assert_array_equal(model(x), MLP()(x))


def test_the_norms_are_those_of_the_dense_sum(float64):
    _, model = build(jnp.float64)
    for layer in adapted_layers(disturb(model)).values():
        kernel, update = vars(layer)["kernel"].get_value(), layer.adapter.update
        expected = np.linalg.norm(kernel + update.delta, axis=0)
        np.testing.assert_allclose(column_norms(kernel, update), expected, rtol=1e-12)


def test_outputs_and_gradients_are_those_of_the_formula(float64):
    _, model = build(jnp.float64)
    graph, state = nnx.split(disturb(model))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6)))

    def loss(state, network):
        return (network(nnx.merge(graph, state), x) ** 2).sum()

    ours, theirs = (
        jax.value_and_grad(loss, allow_int=True)(state, network)
        for network in (lambda model, x: model(x), dense)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-12)
    for got, expected in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True):
        if got.dtype == jnp.float64:
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-10)


def test_a_merge_has_the_lengths_and_can_be_undone():
    _, model = build()
    disturb(model)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
    before = model(x)
    np.testing.assert_allclose(il.merge(model)(x), before, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(il.unmerge(model)(x), before)
    plain = il.detach(il.merge(model))
    np.testing.assert_allclose(plain(x), before, rtol=2e-5, atol=2e-5)
    assert not any("magnitude" in str(path) for path, _ in nnx.to_flat_state(nnx.state(plain)))


def test_code_that_reads_the_kernel_reads_it_with_its_lengths():
    _, model = build()
    disturb(model)
    layer = adapted_layers(model)[MODULES[0]]
    lengths = jnp.linalg.norm(layer.kernel[...], axis=0)
    np.testing.assert_allclose(lengths, jnp.abs(layer.magnitude[...]), rtol=1e-5)


def test_only_directions_and_lengths_learn():
    method, model = build(is_trained=lambda path: path.startswith("head."))
    _, parts = il.split(model, method.is_trained)
    assert set(parts.head) == {
        "head.kernel", "head.bias", *(f"{name}.magnitude" for name in MODULES)
    }  # fmt: skip
    assert list(parts.adapters) == MODULES


def test_other_layers_and_other_models_are_refused():
    class Wide(nnx.Module):
        def __init__(self):
            self.wide = nnx.LinearGeneral(4, (2, 3), rngs=nnx.Rngs(0))

    with pytest.raises(InputError, match=r"dora: wide is no Linear layer.*--exclude-modules"):
        il.dora(Wide()).attach(Wide(), nnx.Rngs(0))
    with pytest.raises(InputError, match="need an NNX module"):
        il.dora({"w": jnp.ones((4, 4))})

"""Every container that Flax knows, and every attribute that is no layer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.config import AdapterConfig, GrowthConfig, TrainingConfig
from increlora_jax.errors import InputError
from increlora_jax.methods.increlora import increlora
from increlora_jax.nn.attach import adapted_layers, detach, find_targets
from increlora_jax.nn.report import report
from increlora_jax.nn.skeleton import split
from increlora_jax.nn.targets import Selection
from increlora_jax.training.prepare import prepare

X = jnp.asarray(np.random.default_rng(3).normal(size=(5, 4)), jnp.float32)


class Pair(NamedTuple):
    """A tuple with names."""

    left: nnx.Linear
    right: nnx.Linear


class Bag(nnx.Pytree):
    """A node of Flax that is no module."""

    def __init__(self, layer):
        self.layer = layer


class Containers(nnx.Module):
    """Layers in everything that may hold them."""

    def __init__(self):
        rngs = nnx.Rngs(0)

        def layer():
            return nnx.Linear(4, 4, rngs=rngs)

        self.list = nnx.data([layer(), [layer(), (layer(), "text", None)]])
        self.dict = nnx.data({"x": layer(), "y": {"z": layer()}})
        self.tuple = nnx.data((layer(), Pair(layer(), layer())))
        self.names = nnx.Dict(a=layer(), b=nnx.List([layer()]))
        self.chain = nnx.Sequential(layer(), nnx.tanh, nnx.Sequential(layer()))
        self.bag = Bag(layer())
        self.twice = nnx.data([self.bag.layer])

    def __call__(self, x):
        first, (second, (third, *_)) = self.list
        layers = [first, second, third, self.dict["x"], self.dict["y"]["z"], self.tuple[0]]
        layers += [self.tuple[1].left, self.tuple[1].right, self.names.a, self.names["b"][0]]
        for layer in [*layers, self.chain, self.bag.layer, *self.twice]:
            x = jnp.tanh(layer(x))
        return x


PATHS = [
    "bag.layer",
    "chain.layers.0",
    "chain.layers.2.layers.0",
    "dict.x",
    "dict.y.z",
    "list.0",
    "list.1.0",
    "list.1.1.0",
    "names.a",
    "names.b.0",
    "tuple.0",
    "tuple.1.left",
    "tuple.1.right",
]


def test_every_container_holds_adapted_layers_and_gets_plain_ones_back(attach_all):
    plain, model = Containers()(X), Containers()
    assert list(find_targets(model, Selection())) == PATHS
    kept = model.list, model.dict
    attach_all(model, max_rank=2)
    assert list(adapted_layers(model)) == PATHS
    assert (model.list, model.dict) == kept  # the user's own list, and not a copy
    assert isinstance(model.tuple[1], Pair)
    assert model.twice[0] is model.bag.layer
    np.testing.assert_array_equal(model(X), plain)
    detach(model)
    assert nnx.graphdef(model) == nnx.graphdef(Containers())


class Attributes(nnx.Module):
    """Whatever a module may keep beside its layers."""

    def __init__(self):
        self.layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.scale, self.mask = jnp.arange(4.0), np.array([True, False, True, True])
        self.table = nnx.data([jnp.ones(4), {"a": np.arange(4)}])
        self.key, self.raw = jax.random.key(1), jax.random.PRNGKey(2)
        self.number, self.nothing, self.name, self.static = nnx.data(2.5), None, "text", 3
        self.several = nnx.Param({"a": jnp.ones(4), "b": (jnp.ones(4),)})
        self.kept = nnx.Variable(jnp.ones((), jnp.int8))

    def __call__(self, x):
        x = self.layer(x) * self.scale * self.mask + self.table[0] + self.table[1]["a"]
        several = self.several.get_value()
        noise = jax.random.normal(self.key, (4,)) + jax.random.normal(self.raw, (4,))
        return x * self.number + self.static + several["a"] + several["b"][0] + self.kept + noise


def test_arrays_and_numbers_that_are_attributes_belong_to_the_base():
    model, plain = Attributes(), Attributes()(X)
    settings = {"adapter": AdapterConfig(), "growth": GrowthConfig(
        target_rank=2, top_h=1, init_warmup=0, incre_interval=1)}  # fmt: skip
    method = increlora(model, steps=4, targets="all-linear", **settings)
    trainer, state, base = prepare(model, method, TrainingConfig(), total_steps=4)
    np.testing.assert_array_equal(trainer.predict(state, base, lambda model: model(X)), plain)

    @jax.jit
    def step(state, base):
        gradients = trainer.value_and_grad(lambda model: jnp.mean(model(X)))(state, base)[1]
        return trainer.update(state, gradients)[0]

    for _ in range(3):
        state = step(state, base)
    trained = trainer.predict(state, base, lambda model: model(X))
    merged = trainer.merge(state, base)
    np.testing.assert_allclose(merged(X), trained, rtol=1e-5, atol=1e-5)
    assert np.abs(trained - plain).max() > 0
    assert (merged.name, merged.static, merged.nothing) == ("text", 3, None)
    assert report(trainer.parts(state, base)).base == 4 * 4 + 4 + 4 + 4 + 4 + 4 + 1 + 2 + 1 + 8 + 1


def test_two_parts_of_one_path_are_named():
    class Twice(nnx.Module):
        def __init__(self):
            layers = [nnx.Linear(4, 4, rngs=nnx.Rngs(0)) for _ in range(2)]
            self.d = nnx.data({"a.b": layers[0], "a": {"b": layers[1]}})

    with pytest.raises(InputError, match=r"two parts of the model have the path d\.a\.b"):
        find_targets(Twice(), Selection())
    with pytest.raises(InputError, match=r"have the path d\.a\.b"):
        split(Twice(), lambda path: False)


def test_a_model_that_is_itself_a_layer_says_what_to_do(attach_all):
    with pytest.raises(InputError, match=r"is itself a Linear.*nnx\.Sequential"):
        attach_all(nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match="the model has no Linear"):
        attach_all(nnx.Sequential(nnx.tanh))

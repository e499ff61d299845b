"""Subclasses of Flax's layers, and wrappers around them: adapted, or named."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.errors import InputError
from increlora_jax.nn.any_model import attach
from increlora_jax.nn.attach import adapted_layers, detach, merge, unmerge
from increlora_jax.nn.kernels import KernelAxes
from tests.nn.test_ties import X, stir


class Named(nnx.Linear):
    """The layer of Flax, made in another way."""

    def __init__(self, width, rngs):
        super().__init__(width, width, rngs=rngs)
        self.extra = 3

    def doubled(self):
        return 2 * self.extra


class Inherited(Named):
    """A subclass of that."""


class General(nnx.LinearGeneral):
    """A subclass of another layer."""


class Contracted(nnx.Einsum):
    """And of the third."""


class Noisy(nnx.Linear):
    """Calls in its own way."""

    def __call__(self, x):
        return 2 * super().__call__(x)


class Attends(nnx.Linear):
    """Uses the kernel elsewhere than in its call."""

    def attend(self, x):
        return x @ self.kernel[...].T


class Taken(nnx.Linear):
    """Holds an attribute by the name of ours."""

    def __init__(self, rngs):
        super().__init__(4, 4, rngs=rngs)
        self.adapter = "mine"


class Net(nnx.Module):
    def __init__(self, **more):
        rngs = nnx.Rngs(0)
        self.a, self.b = Named(4, rngs), Inherited(4, rngs)
        self.c, self.d = General(4, 4, rngs=rngs), Contracted("bi,io->bo", (4, 4), 4, rngs=rngs)
        self.more = nnx.Dict({name: make(rngs) for name, make in more.items()})

    def __call__(self, x):
        for layer in (self.a, self.b, self.c, self.d, *vars(self.more).values()):
            x = jnp.tanh(layer(x)) if callable(layer) else x
        return x


def plain(kind):
    return lambda rngs: kind(4, 4, rngs=rngs)


def test_subclasses_that_call_like_flax_stay_what_they_are(attach_all):
    model = stir(attach_all(Net(), max_rank=2))
    assert list(adapted_layers(model)) == ["a", "b", "c", "d"]
    kinds = {"a": Named, "b": Inherited, "c": General, "d": Contracted}
    assert all(isinstance(getattr(model, name), kind) for name, kind in kinds.items())
    assert (model.a.doubled(), model.b.extra) == (6, 3)
    adapted = model(X)
    assert np.abs(adapted - Net()(X)).max() > 0.1
    np.testing.assert_allclose(merge(model)(X), adapted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(unmerge(model)(X), adapted)
    detach(model)
    assert {name: type(getattr(model, name)) for name in kinds} == kinds
    assert nnx.graphdef(model) == nnx.graphdef(Net())
    assert type(attach_all(model).a) is type(attach_all(Net()).a)  # made once


OTHERS = {
    "noisy": (plain(Noisy), "a Noisy, which uses the kernel in another way than nnx.Linear"),
    "attends": (plain(Attends), "a Attends, which uses the kernel in another way"),
    "taken": (Taken, "a Taken with an attribute 'adapter'"),
    "lora": (lambda rngs: nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs), "a LoRALinear, which"),
    "normed": (lambda r: nnx.WeightNorm(nnx.Linear(4, 4, rngs=r), rngs=r), "part of a WeightNorm"),
    "spectral": (lambda r: nnx.SpectralNorm(nnx.Linear(4, 4, rngs=r), rngs=r), "a SpectralNorm"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_layers_that_cannot_be_adapted_are_named(attach_all, name):
    make, why = OTHERS[name]
    model = Net(**{name: make})
    with pytest.warns(UserWarning, match=f"'all-linear' passes over more.{name}.*{why}"):
        attach_all(model, max_rank=2)
    assert list(adapted_layers(model)) == ["a", "b", "c", "d"]
    with pytest.raises(InputError, match=f"target_modules: more.{name}.*{why}.*Exclude"):
        attach_all(Net(**{name: make}), targets=rf"more\.{name}(\.layer_instance)?")
    with warnings.catch_warnings(action="error"):
        attach_all(Net(**{name: make}), exclude=rf"more\.{name}(\.layer_instance)?")


@pytest.mark.parametrize("name", ["noisy", "attends", "lora"])
def test_their_kernels_can_be_declared(attach_all, name):
    parameters = {rf"more\.{name}\.kernel": KernelAxes()}
    model = attach_all(Net(**{name: OTHERS[name][0]}), parameters=parameters, max_rank=2)
    adapted = stir(model)(X)
    np.testing.assert_allclose(merge(model)(X), adapted, rtol=1e-5, atol=1e-5)


def test_what_a_wrapper_normalizes_cannot_be_declared_either(attach_all):
    model = Net(normed=OTHERS["normed"][0])
    with pytest.raises(InputError, match=r"normed\.layer_instance\.kernel is part of a"):
        attach_all(model, targets=".*kernel", parameters={".*kernel": KernelAxes()})


def test_a_linen_module_inside_is_named(scaling):
    import flax.linen as nn

    rngs = nnx.Rngs(0)
    inner = nnx.bridge.lazy_init(nnx.bridge.ToNNX(nn.Dense(4), rngs=rngs), X)
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), inner)
    with pytest.warns(UserWarning, match=r"layers\.1.*a ToNNX, which .*LinenModel"):
        attach(model, "all-linear", scaling=scaling, rngs=rngs)
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), inner)
    parameters = {r"layers\.1\.kernel": KernelAxes()}
    with pytest.raises(InputError, match=r"layers\.1\.kernel is part of a ToNNX"):
        attach(model, r"layers\.1\.kernel", parameters=parameters, scaling=scaling, rngs=rngs)

"""Kernels that are read beside their own layer's call: everybody finds W + ΔW there."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import increlora_jax as il
from increlora_jax.core.adapter import Scaling
from increlora_jax.errors import InputError
from increlora_jax.nn.any_model import attach
from increlora_jax.nn.attach import adapters_of, detach, merge, unmerge
from increlora_jax.nn.linen import LinenModel, find_targets
from increlora_jax.nn.targets import Selection
from increlora_jax.quantization import store_quantized

X = jnp.asarray(np.random.default_rng(3).normal(size=(5, 4)), jnp.float32)


class Tied(nnx.Module):
    """An autoencoder that is tied by hand, over a layer of some kind."""

    def __init__(self, make):
        self.enc = make(rngs=nnx.Rngs(0))

    def __call__(self, x):
        y = jnp.tanh(self.enc(x))
        return y.reshape(len(x), -1) @ self.enc.kernel[...].reshape(4, -1).T + self.enc.bias.mean()


class Penalized(Tied):
    """A layer whose kernel is read through its variable, and whose shape is read."""

    def __call__(self, x):
        assert self.enc.kernel.shape[0] == 4
        return self.enc(x).reshape(len(x), -1) + jnp.square(self.enc.kernel.get_value()).sum()


class Recomputed(Tied):
    """A read within `nnx.remat` and `nnx.jit`."""

    def __call__(self, x):
        return nnx.jit(nnx.remat(lambda enc, x: enc(x) @ enc.kernel.T))(self.enc, x)


class Stacked(nnx.Module):
    """Tied layers that `nnx.scan` runs."""

    def __init__(self, make):
        self.layers = nnx.vmap(lambda key: Tied(lambda rngs: make(rngs=nnx.Rngs(key))))(
            jax.random.split(jax.random.key(0), 3)
        )

    def __call__(self, x):
        return nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
            x, self.layers
        )


LINEAR = partial(nnx.Linear, 4, 6)
MODELS = {
    "linear": lambda: Tied(LINEAR),
    "many rows": lambda: Tied(partial(nnx.Linear, 4, 6, precision="highest")),
    "linear general": lambda: Tied(partial(nnx.LinearGeneral, 4, (2, 3))),
    "einsum": lambda: Tied(partial(nnx.Einsum, "bd,dnh->bnh", (4, 2, 3), (2, 3))),
    "penalty": lambda: Penalized(LINEAR),
    "recomputed": lambda: Recomputed(LINEAR),
    "stack": lambda: Stacked(LINEAR),
}


def stirred(model):
    draw = np.random.default_rng(2)
    for own in adapters_of(model).values():
        own.lam[...] = jnp.asarray(draw.normal(size=own.lam.shape), jnp.float32)
        own.B[...] = jnp.asarray(draw.normal(size=own.B.shape), jnp.float32)
    return model


def adapted(make):
    settings = {"max_rank": 2, "scaling": Scaling(4.0), "rngs": nnx.Rngs(1)}
    return stirred(attach(make(), "all-linear", **settings))


@pytest.mark.parametrize("kind", MODELS)
def test_a_kernel_is_read_with_its_update_merged_or_not(kind):
    model, plain = adapted(MODELS[kind]), MODELS[kind]()(X)
    states = [nnx.state(model)]
    whole = model(X)
    merge(model)
    np.testing.assert_allclose(model(X), whole, rtol=2e-5, atol=2e-5)
    unmerge(model)
    np.testing.assert_array_equal(model(X), whole)
    states.append(nnx.state(model))  # what Flax holds is W
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert not np.allclose(whole, plain, atol=1e-3)
    np.testing.assert_array_equal(detach(model)(X), plain)


@pytest.mark.parametrize("importance", ["sensitivity", "lambda_gradient"])
def test_a_read_kernel_is_trained_and_scored_by_all_its_uses(importance):
    growth = il.GrowthConfig(
        target_rank=2, top_h=1, init_warmup=0, incre_interval=2, importance=importance
    )
    sizes = {}
    for name, model in {
        "layer": Tied(LINEAR),
        "declared": TiedByHand(Tied(LINEAR).enc),
    }.items():
        places = {"targets": "all-linear"}
        if name == "declared":
            places = {"targets": ".*kernel", "parameters": {r".*kernel": il.KernelAxes()}}
        method = il.increlora(model, steps=9, growth=growth, **places)
        trainer, state, base = il.prepare(model, method, total_steps=9)
        state = alike(state)
        _, gradients = jax.jit(trainer.value_and_grad(lambda m: jnp.square(m(X) - 1).mean()))(
            state, base
        )
        sizes[name] = jax.tree.leaves((gradients.params.adapter, gradients.evidence))
    for one, other in zip(*sizes.values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


class TiedByHand(nnx.Module):
    """The same model over a parameter of its own."""

    def __init__(self, layer):
        self.enc = ByHand(layer.kernel, layer.bias)

    def __call__(self, x):
        y = jnp.tanh(x @ self.enc.kernel[...] + self.enc.bias)
        return y @ self.enc.kernel[...].T + self.enc.bias.mean()


class ByHand(nnx.Module):
    def __init__(self, kernel, bias):
        self.kernel, self.bias = kernel, bias


def alike(state):
    """Start adapters of other names from the same numbers."""
    draw = np.random.default_rng(2)

    def normal(leaf):
        return jnp.asarray(draw.normal(size=leaf.shape) / 2, leaf.dtype)

    adapter = jax.tree.map(normal, state.params.adapter)
    return state._replace(params=state.params._replace(adapter=adapter))


def test_a_layer_that_is_read_is_not_called_once():
    def gradients_of(loss):
        model = Tied(LINEAR)
        growth = il.GrowthConfig(top_h=1, init_warmup=0, incre_interval=2)
        method = il.increlora(model, steps=9, growth=growth)
        trainer, state, base = il.prepare(model, method, total_steps=9, is_called_once=True)
        return jax.jit(trainer.value_and_grad(loss))(state, base)

    with pytest.raises(InputError, match=r"reads the kernel \[4, 6\] .*is_called_once=False"):
        gradients_of(lambda model: model(X).sum())
    # Its shape and its dtype are no use of it.
    gradients_of(lambda model: (model.enc(X) * model.enc.kernel.shape[0]).sum())


def test_a_read_kernel_cannot_be_written_but_a_state_can():
    model = adapted(MODELS["linear"])
    for write in (
        lambda: model.enc.kernel.set_value(jnp.zeros((4, 6))),
        lambda: model.enc.kernel.__setitem__(..., jnp.zeros((4, 6))),
    ):
        with pytest.raises(InputError, match=r"\[4, 6\] is read as W \+ ΔW and cannot be written"):
            write()
    state = nnx.state(model)
    state["enc"]["kernel"][...] = jnp.zeros((4, 6))
    nnx.update(model, state)
    assert not nnx.state(model)["enc"]["kernel"][...].any()
    np.testing.assert_allclose(model.enc.kernel[...], model.enc.adapter.update.delta, rtol=1e-6)


def test_a_reading_that_is_assigned_elsewhere_is_refused_by_its_path():
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 4, rngs=nnx.Rngs(1)))
    attach(model, ["layers.0"])
    model.layers[1].kernel = model.layers[0].kernel
    with pytest.raises(InputError, match=r"^layers\.1\.kernel was assigned from .* before il\.att"):
        il.split(model, lambda path: False)


def test_the_shape_of_an_abstract_kernel_is_read():
    model = nnx.eval_shape(lambda: Tied(LINEAR))
    attach(model, "all-linear", max_rank=2, scaling=Scaling(4.0), rngs=nnx.Rngs(1))
    assert model.enc.kernel.shape == (4, 6)
    plan = nnx.eval_shape(lambda: adapted(MODELS["linear"]))
    assert plan.enc.kernel.shape == (4, 6)


def test_a_quantized_kernel_is_read_spread_out():
    pytest.importorskip("qwix")
    model = nnx.eval_shape(lambda: Tied(LINEAR))
    store_quantized(model, "enc", "int8")
    graph, state = nnx.split(model)
    assert "kernel" in state["enc"]
    from increlora_jax.quantization import quantize

    plain = Tied(LINEAR)
    kernel = quantize(plain.enc.kernel[...], "int8")
    leaves = nnx.to_flat_state(nnx.state(plain))
    model = nnx.merge(graph, nnx.from_flat_state([(p, v) for p, v in leaves]))
    model.enc.kernel.set_value(kernel)
    settings = {"max_rank": 2, "scaling": Scaling(4.0), "rngs": nnx.Rngs(1)}
    stirred(attach(model, "all-linear", **settings))
    whole = model(X)
    np.testing.assert_allclose(merge(model)(X), whole, rtol=2e-5, atol=2e-5)


class LinenTied(nn.Module):
    """A decoder that reads the kernel of a sibling in one of several ways."""

    way: str = "variables"

    def setup(self):
        self.enc, self.other = nn.Dense(6), nn.Dense(4)

    def encode(self, x):
        return jnp.tanh(self.enc(x))

    def __call__(self, x, is_tied=True):
        return self.decode(self.encode(x)) if is_tied else self.encode(x)

    def decode(self, y):
        match self.way:
            case "variables":
                return y @ self.enc.variables["params"]["kernel"].T
            case "get_variable":
                return y @ self.enc.get_variable("params", "kernel").T
            case "own variables":
                return self.other(y) + y @ self.variables["params"]["enc"]["kernel"].T
            case "sibling":
                return self.other(y @ self.enc.variables["params"]["kernel"].T)
            case "shape":
                assert self.enc.variables["params"]["kernel"].shape == (4, 6)
                return self.other(y)
        return self.other(y)


class LinenStack(nn.Module):
    """Tied layers that `nn.scan` runs, each computed again in the backward pass."""

    @nn.compact
    def __call__(self, x):
        body = nn.remat(LinenBody)
        scanned = nn.scan(body, {"params": 0}, split_rngs={"params": True}, length=3)
        return scanned()(x, None)[0]


class LinenBody(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        enc = nn.Dense(6)
        return jnp.tanh(enc(x)) @ enc.variables["params"]["kernel"].T, None


def standardize(variables):
    return jax.tree.map(lambda w: (w - w.mean(0)) * 3 if w.ndim == 2 else w, variables)


class LinenMapped(nn.Module):
    """A layer that computes with a function of its kernel, beside one that does not."""

    @nn.compact
    def __call__(self, x, _=None):
        mapped = nn.map_variables(nn.Dense, "params", trans_in_fn=standardize, init=True)
        x = jnp.tanh(nn.Dense(4, name="plain")(x))
        return jnp.tanh(mapped(4, name="mapped")(x)), None


class LinenMappedStack(nn.Module):
    @nn.compact
    def __call__(self, x):
        body, options = nn.remat(LinenMapped), {"split_rngs": {"params": True}, "length": 3}
        return nn.scan(body, {"params": 0}, **options)(name="stack")(x, None)[0]


WAYS = ["variables", "get_variable", "own variables", "sibling", "shape", "none"]


def linen_of(kind):
    module = LinenStack() if kind == "stack" else LinenTied(kind)
    return LinenModel(module, module.init(jax.random.key(0), X), X)


@pytest.mark.parametrize("kind", [*WAYS, "stack"])
def test_a_linen_kernel_is_read_with_its_update(kind):
    model = linen_of(kind)
    assert any(not site.is_layer for site in find_targets(model, Selection()).values()) == (
        kind not in ("shape", "none")
    )
    trainer, state, base = il.prepare(model, il.lora(model), total_steps=9)
    state = alike(state)
    whole = trainer.predict(state, base, lambda m: m(X))
    merged = model.module.apply(trainer.merge(state, base), X)
    np.testing.assert_allclose(merged, whole, rtol=2e-5, atol=2e-5)
    assert not np.allclose(whole, model.module.apply(model.variables, X), atol=1e-3)


@pytest.mark.parametrize("module", [LinenMapped(), LinenMappedStack()])
def test_a_linen_kernel_of_which_a_layer_sees_a_function_is_merged_as_it_is_trained(module):
    model = LinenModel(module, module.init(jax.random.key(0), X), X)
    sites = find_targets(model, Selection())
    assert {p.split(".")[-1]: s.is_layer for p, s in sites.items()} == {
        "mapped": False,
        "plain": True,
    }
    trainer, state, base = il.prepare(model, il.lora(model), total_steps=9)
    whole = trainer.predict(alike(state), base, lambda m: jax.tree.leaves(m(X))[0])
    merged = jax.tree.leaves(module.apply(trainer.merge(alike(state), base), X))[0]
    np.testing.assert_allclose(merged, whole, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("inputs", "options"),
    [((X, False), {}), ((X,), {"is_tied": False}), ((X,), {"method": "encode"})],
)
def test_another_call_that_reads_a_linen_kernel_is_refused_by_name(inputs, options):
    module = LinenTied("sibling")
    model = LinenModel(module, module.init(jax.random.key(0), X), *inputs, **options)
    trainer, state, base = il.prepare(model, il.lora(model), total_steps=9)
    trainer.predict(state, base, lambda m: m(*inputs, **options))
    with pytest.raises(InputError, match=r"^enc: this call .* reads the layer's kernel"):
        trainer.value_and_grad(lambda m: m(X).sum())(state, base)
    model = linen_of("sibling")
    trainer, state, base = il.prepare(model, il.lora(model), total_steps=9)
    trainer.predict(state, base, lambda m: m(*inputs, **options))


def test_dropout_on_a_linen_kernel_that_is_read_is_refused_by_name():
    adapter = il.AdapterConfig(lora_dropout=0.1)
    model = linen_of("variables")
    with pytest.raises(InputError, match=r"enc: .*read beside its layer's call.*lora_dropout"):
        il.prepare(model, il.lora(model, adapter=adapter), total_steps=9)
    model = linen_of("shape")
    il.prepare(model, il.lora(model, adapter=adapter), total_steps=9)


def test_the_arrays_of_a_tree_are_read_with_their_updates_everywhere():
    params = {"enc": jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)}

    def call(params):
        return jnp.tanh(X @ params["enc"]) @ params["enc"].T

    trainer, state, base = il.prepare(params, il.lora(params), total_steps=9)
    state = alike(state)
    whole = trainer.predict(state, base, call)
    np.testing.assert_array_equal(call(trainer.merge(state, base)), whole)
    assert not np.allclose(whole, call(params), atol=1e-3)


def test_a_linen_model_without_parameters_is_taken_apart():
    module = nn.Dropout(0.2, deterministic=True)
    model = LinenModel(module, module.init(jax.random.key(0), X), X)
    trainer, state, base = il.prepare(
        model, il.head(is_trained=lambda path: True, model=model), total_steps=9
    )
    np.testing.assert_array_equal(trainer.predict(state, base, lambda m: m(X)), X)
    assert trainer.merge(state, base) == {}

"""One model by every way in, alone and as a stack of layers."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from increlora_jax.nn.kernels import KernelAxes
from increlora_jax.nn.linen import LinenModel
from increlora_jax.nn.targets import NO_PARAMETERS

WIDTH, LAYERS = 4, 3


class Own(nnx.Module):
    """A layer of a class that is not Flax's."""

    def __init__(self, inputs, outputs, rngs, param_dtype):
        plain = nnx.Linear(inputs, outputs, rngs=rngs, param_dtype=param_dtype)
        self.kernel, self.bias = plain.kernel, plain.bias

    def __call__(self, x):
        return x @ self.kernel + self.bias


class Unrolled(nnx.Module):
    """Layers in a list."""

    def __init__(self, layer=nnx.Linear):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List(
            [layer(WIDTH, WIDTH, rngs=rngs, param_dtype=float) for _ in range(LAYERS)]
        )
        self.head = nnx.Linear(WIDTH, 1, rngs=rngs, param_dtype=float)

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.head(x)


class Scanned(nnx.Module):
    """The same layers, stacked."""

    def __init__(self, layer=nnx.Linear):
        plain = Unrolled()
        self.layers = nnx.vmap(lambda key: layer(
            WIDTH, WIDTH, rngs=nnx.Rngs(key), param_dtype=float))(
            jax.random.split(jax.random.key(0), LAYERS))  # fmt: skip
        for name in ("kernel", "bias"):
            stack = jnp.stack([getattr(layer, name)[...] for layer in plain.layers])
            getattr(self.layers, name)[...] = stack
        self.head = plain.head

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return jnp.tanh(layer(x))

        return self.head(run(x, self.layers))


class LinenOwn(nn.Module):
    """A layer of a class that is not Flax's, in Linen."""

    features: int
    param_dtype: Any

    @nn.compact
    def __call__(self, x):
        shape = x.shape[-1], self.features
        kernel = self.param("kernel", nn.initializers.normal(), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return x @ kernel + bias


class LinenLayers(nn.Module):
    """The same in Linen."""

    layer: Any = nn.Dense

    @nn.compact
    def __call__(self, x):
        for index in range(LAYERS):
            x = jnp.tanh(self.layer(WIDTH, param_dtype=float, name=f"layers_{index}")(x))
        return nn.Dense(1, param_dtype=float, name="head")(x)


class LinenLayer(nn.Module):
    layer: Any = nn.Dense

    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(self.layer(WIDTH, param_dtype=float, name="dense")(x)), None


class LinenScanned(nn.Module):
    """The same in Linen, stacked."""

    layer: Any = nn.Dense

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(LinenLayer), {"params": 0}, split_rngs={"params": True}, length=LAYERS
        )
        x, _ = layers(self.layer, name="layers")(x, None)
        return nn.Dense(1, param_dtype=float, name="head")(x)


def params_of():
    plain = Unrolled()
    layers = [{"kernel": m.kernel[...], "bias": m.bias[...]} for m in (*plain.layers, plain.head)]
    return layers[:-1], layers[-1]


def stacked_params():
    layers, head = params_of()
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers), head


def linen_model(layer=nn.Dense):
    layers, head = params_of()
    params = {f"layers_{index}": layer for index, layer in enumerate(layers)} | {"head": head}
    return LinenModel(LinenLayers(layer), {"params": params}, jnp.zeros((1, WIDTH)))


def linen_scanned(layer=nn.Dense):
    layers, head = stacked_params()
    params = {"layers": {"dense": layers}, "head": head}
    return LinenModel(LinenScanned(layer), {"params": params}, jnp.zeros((1, WIDTH)))


def tree():
    layers, head = params_of()
    return {"layers": layers, "head": head}


def stacked_tree():
    layers, head = stacked_params()
    return {"layers": layers, "head": head, "name": "no array"}


def apply_tree(params, x):
    for layer in params["layers"]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def apply_stacked_tree(params, x):
    def body(x, layer):
        return jnp.tanh(x @ layer["kernel"] + layer["bias"]), None

    x, _ = jax.lax.scan(body, x, params["layers"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


class Way(NamedTuple):
    """How to make a model, which of it to adapt, how to call it whole and how when merged."""

    make: Any
    targets: str
    call: Any = lambda model, x: model(x)
    call_merged: Any = lambda model, x: model(x)
    parameters: Any = NO_PARAMETERS


def _linen(make, whole, layer, targets, **settings):
    call_merged = lambda variables, x: whole(layer).apply(variables, x)  # noqa: E731
    return Way(partial(make, layer), targets, call_merged=call_merged, **settings)


def _declared(name, stack=0):
    return {"parameters": {name: KernelAxes((stack,), (stack + 1,))}}


WAYS = {
    "nnx": Way(Unrolled, r"layers\.\d"),
    "nnx scanned": Way(Scanned, "layers"),
    "nnx declared": Way(
        partial(Unrolled, Own), r"layers\.\d\.kernel", **_declared(r"layers\.\d\.kernel")
    ),
    "nnx declared scanned": Way(
        partial(Scanned, Own), r"layers\.kernel", **_declared(r"layers\.kernel", 1)
    ),
    "linen": _linen(linen_model, LinenLayers, nn.Dense, r"layers_\d"),
    "linen scanned": _linen(linen_scanned, LinenScanned, nn.Dense, r"layers\.dense"),
    "linen declared": _linen(
        linen_model, LinenLayers, LinenOwn, r"layers_\d\.kernel", **_declared(r"layers_\d\.kernel")
    ),
    "linen declared scanned": _linen(
        linen_scanned, LinenScanned, LinenOwn, r"layers\.dense\.kernel",
        **_declared(r"layers\.dense\.kernel", 1),
    ),
    "tree": Way(tree, r"layers\.\d\.kernel", apply_tree, apply_tree),
    "stacked tree": Way(
        stacked_tree, r"layers\.kernel", apply_stacked_tree, apply_stacked_tree,
        **_declared(r"layers\.kernel", 1),
    ),
}  # fmt: skip

"""Parts of models by the three ways in; each keeps the shape [ROWS, WIDTH] of what goes through."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

ROWS, WIDTH = 3, 4
FLAT = (ROWS, WIDTH)


class SubLinear(nnx.Linear):
    """A subclass that calls like its parent."""


class OddLinear(nnx.Linear):
    """A subclass that uses its kernel in a way of its own."""

    def __call__(self, x):
        return super().__call__(x) + x @ self.kernel.T


class Call(nnx.Module):
    """A module, and what is computed with it."""

    def __init__(self, module, call=lambda module, x: module(x).reshape(FLAT)):
        self.module, self.call = module, call

    def __call__(self, x):
        return self.call(self.module, x)


class Own(nnx.Module):
    """A parameter of a class that is not Flax's, in a variable of some kind."""

    def __init__(self, rngs, dtype, kind=nnx.Param):
        self.w = kind(jax.random.normal(rngs.params(), (WIDTH, 2, 2), dtype) / 2)
        self.scale = jnp.arange(1.0, 3.0, dtype=dtype)  # a bare array, as rotary tables are

    def __call__(self, x):
        y = jnp.einsum("bd,dnh,n->bnh", x, self.w[...], self.scale)
        return y.reshape(FLAT)


class Shared(nnx.Module):
    """Two layers with one kernel, or one layer under two names."""

    def __init__(self, make, is_layer):
        self.a = make()
        self.b = self.a if is_layer else make()
        if not is_layer:
            self.b.kernel = self.a.kernel

    def __call__(self, x):
        return self.b(jnp.tanh(self.a(x)))


class TiedEmbedding(nnx.Module):
    """Token vectors that are the head's kernel, too."""

    def __init__(self, embed, head):
        self.embed, self.head = embed, head
        self.head.kernel = nnx.Param(embed.embedding[...])
        self.embed.embedding = self.head.kernel

    def __call__(self, x):
        return self.embed(jnp.argmax(x, -1)) + self.head(x)


class Read(nnx.Module):
    """A layer whose kernel is read beside its call."""

    def __init__(self, make, key):
        self.layer = make(key)

    def __call__(self, x):
        return jnp.tanh(self.layer(x)) @ self.layer.kernel[...].T


class Stack(nnx.Module):
    """Layers that `nnx.vmap` makes and `nnx.scan` runs."""

    def __init__(self, make, rngs):
        self.layers = nnx.vmap(make)(jax.random.split(rngs.params(), 2))

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return jnp.tanh(layer(x)).reshape(FLAT)

        return run(x, self.layers)


def _image(module, x):
    return module(x[:, :, None]).reshape(FLAT)


def _nnx_parts(rngs: nnx.Rngs, dtype: Any) -> dict[str, Any]:
    like = {"rngs": rngs, "param_dtype": dtype, "dtype": dtype}
    linear = partial(nnx.Linear, WIDTH, WIDTH, **like)
    two = (2, 2)
    normal = nnx.initializers.normal(0.5)
    cell = partial(nnx.GRUCell, WIDTH, WIDTH, recurrent_kernel_init=normal, **like)

    def stacked(key):
        return nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(key), param_dtype=dtype, dtype=dtype)

    return {
        "linear": linear,
        "without bias": partial(linear, use_bias=False),
        "sub-linear": partial(SubLinear, WIDTH, WIDTH, **like),
        "odd linear": partial(OddLinear, WIDTH, WIDTH, **like),
        "linear general": lambda: Call(nnx.LinearGeneral(WIDTH, two, **like)),
        "joining": lambda: Call(
            nnx.LinearGeneral(two, WIDTH, axis=(-2, -1), **like),
            lambda module, x: module(x.reshape(ROWS, 2, 2)),
        ),
        "einsum": lambda: Call(nnx.Einsum("bd,dnh->bnh", (WIDTH, 2, 2), two, **like)),
        "kept einsum": lambda: nnx.Einsum("bd,bd->bd", FLAT, FLAT, **like),
        "convolution": lambda: Call(nnx.Conv(1, 1, (3,), **like), _image),
        "embedding": lambda: Call(
            nnx.Embed(WIDTH, WIDTH, **like), lambda m, x: m(jnp.argmax(x, -1)) + m.attend(x)
        ),
        "tied embedding": lambda: TiedEmbedding(nnx.Embed(WIDTH, WIDTH, **like), linear()),
        "layer norm": lambda: nnx.LayerNorm(WIDTH, **like),
        "batch norm": lambda: nnx.BatchNorm(WIDTH, use_running_average=True, **like),
        "moving batch norm": lambda: nnx.BatchNorm(WIDTH, **like),
        "dropout": lambda: nnx.Dropout(0.2, rngs=rngs),
        "tied kernels": lambda: Shared(linear, is_layer=False),
        "shared layer": lambda: Shared(linear, is_layer=True),
        "read kernel": lambda: Call(linear(), lambda m, x: jnp.tanh(m(x)) @ m.kernel.T),
        "read in a stack": lambda: Stack(partial(Read, stacked), rngs),
        "own": lambda: Own(rngs, dtype),
        "own kind of variable": lambda: Own(rngs, dtype, nnx.Variable),
        "stack": lambda: Stack(stacked, rngs),
        "stack of own": lambda: Stack(lambda key: Own(nnx.Rngs(key), dtype), rngs),
        "attention": lambda: Call(
            nnx.MultiHeadAttention(1, 2, decode=False, **like),
            lambda m, x: m(x.reshape(ROWS, 2, 2)).reshape(FLAT),
        ),
        "cell": lambda: Call(cell(), lambda m, x: m(jnp.ones_like(x), x)[1]),
        "low rank": lambda: nnx.LoRALinear(WIDTH, WIDTH, lora_rank=1, **like),
        "weight norm": lambda: nnx.WeightNorm(linear(), rngs=rngs),
        "sequential": lambda: nnx.Sequential(linear(), jnp.tanh, linear()),
        "recomputed": lambda: Call(linear(), nnx.remat(lambda m, x: m(x))),
        "function": lambda: jnp.tanh,
    }


def _parts_by_name(parts):
    return {f"part_{index}": part for index, part in enumerate(parts)}


HOLDERS = {
    "list": nnx.List,
    "data list": lambda parts: nnx.data(list(parts)),
    "data tuple": lambda parts: nnx.data(tuple(parts)),
    "dict": lambda parts: nnx.Dict(**_parts_by_name(parts)),
    "data dict": lambda parts: nnx.data(_parts_by_name(parts)),
    "nested": lambda parts: nnx.data({"inner": [tuple(parts)]}),
    "sequential": lambda parts: nnx.List([nnx.Sequential(*parts)]),
}


class Chain(nnx.Module):
    """Parts one after another, in a container of some kind, each beside its input."""

    def __init__(self, names, holder, dtype):
        makers = _nnx_parts(nnx.Rngs(0), dtype)
        self.parts = HOLDERS[holder]([makers[name]() for name in names])

    def __call__(self, x):
        for part in jax.tree.leaves(self.parts, is_leaf=callable):
            x = x + jnp.tanh(part(x))
        return x


class LinenOwn(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.normal(0.5), (WIDTH, 2, 2), self.dtype)
        return jnp.einsum("bd,dnh->bnh", x, w).reshape(FLAT)


class SubDense(nn.Dense):
    """A subclass that calls like its parent."""


class LinenTwice(nn.Module):
    """One layer that is called twice."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(WIDTH, dtype=self.dtype, param_dtype=self.dtype)
        return dense(jnp.tanh(dense(x)))


class LinenSetup(nn.Module):
    """Layers in a list and a dictionary that `setup` makes."""

    dtype: Any

    def setup(self):
        def make():
            return nn.Dense(WIDTH, dtype=self.dtype, param_dtype=self.dtype)

        self.several, self.named = [make(), make()], {"a": make()}

    def __call__(self, x):
        for layer in (*self.several, self.named["a"]):
            x = jnp.tanh(layer(x))
        return x


class LinenLayer(nn.Module):
    layer: Any

    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(self.layer()(x)).reshape(FLAT), None


class LinenStack(nn.Module):
    """Layers that `nn.scan` stacks."""

    layer: Any

    @nn.compact
    def __call__(self, x):
        scanned = nn.scan(LinenLayer, {"params": 0}, split_rngs={"params": True}, length=2)
        return scanned(self.layer)(x, None)[0]


class LinenCall(nn.Module):
    """A module, and what is computed with it."""

    make: Any
    call: Any = lambda module, x: module(x).reshape(FLAT)

    @nn.compact
    def __call__(self, x):
        return self.call(self.make(), x)


def _read_linen(module, x):
    return jnp.tanh(module(x)) @ module.variables["params"]["kernel"].T


def _linen_parts(dtype: Any) -> dict[str, Any]:
    like = {"dtype": dtype, "param_dtype": dtype}
    dense = partial(nn.Dense, WIDTH, **like)
    normal = nn.initializers.normal(0.5)  # the default, orthogonal, knows no bf16
    return {
        "linear": dense,
        "without bias": partial(dense, use_bias=False),
        "sub-linear": partial(SubDense, WIDTH, **like),
        "linear general": lambda: LinenCall(partial(nn.DenseGeneral, (2, 2), **like)),
        "joining": lambda: LinenCall(
            partial(nn.DenseGeneral, WIDTH, axis=(-2, -1), **like),
            lambda module, x: module(x.reshape(ROWS, 2, 2)),
        ),
        "einsum": lambda: LinenCall(partial(nn.Einsum, (WIDTH, 2, 2), "bd,dnh->bnh", **like)),
        "convolution": lambda: LinenCall(partial(nn.Conv, 1, (3,), **like), _image),
        "embedding": lambda: LinenCall(
            partial(nn.Embed, WIDTH, WIDTH, **like),
            lambda m, x: m(jnp.argmax(x, -1)) + m.attend(x),
        ),
        "layer norm": partial(nn.LayerNorm, **like),
        "batch norm": partial(nn.BatchNorm, use_running_average=True, **like),
        "dropout": partial(nn.Dropout, 0.2, deterministic=True),
        "shared layer": partial(LinenTwice, dtype),
        "read kernel": lambda: LinenCall(dense, _read_linen),
        "read in a stack": partial(LinenStack, partial(LinenCall, dense, _read_linen)),
        "setup": partial(LinenSetup, dtype),
        "own": partial(LinenOwn, dtype),
        "stack": partial(LinenStack, dense),
        "stack of own": partial(LinenStack, partial(LinenOwn, dtype)),
        "attention": lambda: LinenCall(
            partial(nn.MultiHeadDotProductAttention, 1, **like),
            lambda m, x: m(x.reshape(ROWS, 2, 2)).reshape(FLAT),
        ),
        "cell": lambda: LinenCall(
            partial(nn.GRUCell, WIDTH, recurrent_kernel_init=normal, **like),
            lambda m, x: m(jnp.ones_like(x), x)[1],
        ),
        "weight norm": lambda: LinenCall(lambda: nn.WeightNorm(dense())),
        "sequential": lambda: nn.Sequential([dense(), jnp.tanh, dense()]),
        "recomputed": lambda: nn.remat(nn.Dense)(WIDTH, **like),
        "function": lambda: jnp.tanh,
    }


class LinenChain(nn.Module):
    names: tuple[str, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x):
        makers = _linen_parts(self.dtype)
        for name in self.names:
            x = x + jnp.tanh(makers[name]()(x))
        return x


class Pair(NamedTuple):
    a: Any
    b: Any


def _tree_parts(draw: np.random.Generator, dtype: Any) -> dict[str, Any]:
    def array(*shape):
        return jnp.asarray(draw.normal(size=shape) / 2, dtype)

    shared = array(WIDTH, WIDTH)
    return {
        "linear": {"w": array(WIDTH, WIDTH), "bias": array(WIDTH)},
        "list": [array(WIDTH, WIDTH), array(WIDTH, WIDTH), "a word", None],
        "tuple": (array(WIDTH, 2), array(2, WIDTH)),
        "named": Pair(array(WIDTH, WIDTH), array(WIDTH, WIDTH)),
        "own": {"heads": array(WIDTH, 2, 2)},
        "stack": {"layers": array(2, WIDTH, WIDTH), "count": 2},
        "tied kernels": {"a": shared, "b": shared},
        "function": {"call": jnp.tanh, "steps": jnp.arange(4).reshape(2, 2)},
    }


def _matrices(part):
    """The arrays of a part as matrices that keep the width when all are applied."""
    for leaf in jax.tree.leaves(part):
        if hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim > 1:
            if leaf.shape == (WIDTH, 2, 2):
                yield leaf.reshape(WIDTH, WIDTH)
            else:
                yield from leaf if leaf.ndim == 3 else [leaf]


def call_tree(tree, x):
    """Apply a tree of parts."""
    for part in tree["parts"]:
        y = x
        for matrix in _matrices(part):
            y = jnp.tanh(y @ matrix)
        x = x + y
    return x


def make_tree(names, dtype):
    """Make a tree of parts."""
    parts = _tree_parts(np.random.default_rng(0), dtype)
    return {"parts": [parts[name] for name in names]}


NNX_NAMES = tuple(_nnx_parts(nnx.Rngs(0), jnp.float32))
LINEN_NAMES = tuple(_linen_parts(jnp.float32))
TREE_NAMES = tuple(_tree_parts(np.random.default_rng(0), jnp.float32))

_MATRICES = {
    "linear": 1,
    "without bias": 1,
    "sub-linear": 1,
    "linear general": 1,
    "joining": 1,
    "einsum": 1,
    "shared layer": 1,
    "read kernel": 1,
    "read in a stack": 2,
    "stack": 2,
    "attention": 4,
    "sequential": 2,
    "recomputed": 1,
}
MATRICES = {
    "nnx": _MATRICES | {"tied kernels": 2, "tied embedding": 1, "cell": 2},
    "linen": _MATRICES | {"setup": 3, "cell": 2},
    "tree": {"linear": 1, "list": 2, "tuple": 2, "named": 2, "tied kernels": 2},
}
"""How many matrices of each part "all-linear" must find at least."""

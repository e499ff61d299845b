"""A Linen model, its call, and what the call comes by: modules, and kernels read elsewhere."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import DenyList, meta, unfreeze
from flax.linen.dtypes import promote_dtype
from jax.interpreters.partial_eval import dce_jaxpr

from increlora_jax.nn.products import is_plain_product
from increlora_jax.nn.tree import TreeShape, take_apart

LAYER_TYPES = (nn.Dense, nn.DenseGeneral, nn.Einsum)
NORMALIZERS = (nn.WeightNorm, nn.SpectralNorm)

PRODUCTS = ("dot_general", "dot_general_cls", "promote_dtype")
"""Attributes of Linen's layers that put another function in the place of x · W."""


class LinenModel:
    """A Linen module, its variables as `init` gives them, and inputs of one call to learn from.

    The call, `module.apply(variables, *inputs, **options)`, is only traced, so that arrays may be
    `jax.ShapeDtypeStruct`s. Boxes with partitioning metadata are taken off the variables.
    """

    def __init__(self, module: nn.Module, variables: Any, *inputs: Any, **options: Any):
        self.module = module
        self.variables = unfreeze(meta.unbox(variables))
        self.inputs = inputs
        self.options = options

    def take_apart(self) -> tuple[TreeShape, dict[str, Any]]:
        """The variables' shape and their arrays by path, in which `params` goes without saying."""
        shape, arrays = take_apart(self.variables)
        names = tuple(name and name.removeprefix("params.") for name in shape.names)
        plain = {name.removeprefix("params."): array for name, array in arrays.items()}
        return shape._replace(names=names), plain


class Called(NamedTuple):
    """A module that the model's call comes by."""

    module: nn.Module
    kernel: tuple[int, ...]  # the shape that the module sees, () without a kernel
    normalizer: str | None  # the class around the module that computes another kernel
    is_read: bool = False  # its kernel, beside its own call

    @property
    def obstacle(self) -> str | None:
        """Why no update can be added to the layer's output and merged into its kernel."""
        kind = type(self.module).__name__
        if self.normalizer is not None:
            return (
                f"part of a {self.normalizer}, which computes another kernel from the one it "
                "holds: no update could be merged into it"
            )
        if not is_layer(self.module):
            return f"a {kind}, which computes its output in another way than its parent class"
        for name in PRODUCTS:
            own = getattr(self.module, name, None)
            if own not in (None, promote_dtype) and not is_plain_product(name, own):
                return f"a {kind} with a {name} of its own, through which no update could be merged"
        return f"a {kind} with batch_dims" if getattr(self.module, "batch_dims", ()) else None


def is_layer(module: nn.Module) -> bool:
    """Return whether a module can be adapted: a layer of Flax, or a subclass that calls like it."""
    calls = [kind.__call__ for kind in LAYER_TYPES]
    return isinstance(module, LAYER_TYPES) and type(module).__call__ in calls


def trace_call(model: LinenModel) -> dict[str, Called]:
    """Collect every module that the model's call comes by, by path."""
    shape, arrays = model.take_apart()
    call, given = take_apart((model.inputs, model.options))
    found: dict[str, Called] = {}

    def apply(arrays: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        inputs, own = call.fill(given)
        # Parameters that are written would count as outputs that are computed from them.
        options = {"rngs": {"dropout": jax.random.key(0)}, "mutable": DenyList("params"), **own}
        return model.module.apply(shape.fill(arrays), *inputs, **options)

    with _recorded(found):
        traced = jax.make_jaxpr(apply)(arrays, given)
    _, uses = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    names = jax.tree.leaves({name: name for name in arrays})
    used = {name for name, is_used in zip(names, uses, strict=False) if is_used}
    return {
        path: called._replace(is_read=f"{path}.kernel" in used) for path, called in found.items()
    }


def call_of(inputs: Any, options: Mapping[str, Any]) -> TreeShape:
    """Return what of a call decides the modules that it comes by: all but its arrays."""
    own = {name: value for name, value in options.items() if name not in ("rngs", "mutable")}
    return take_apart((inputs, own))[0]


@contextmanager
def _recorded(found: dict[str, Called]) -> Iterator[None]:
    """Record every module that is called; layers compute with a kernel of zeros meanwhile.

    What is computed from the model's own kernel is then a read beside its layer's call.
    """
    normalizers: list[str] = []

    def record(call: Any, args: Any, options: Any, context: Any) -> Any:
        module, depth = context.module, len(normalizers)
        if isinstance(module, NORMALIZERS):
            normalizers.append(type(module).__name__)
        normalizer = next(iter(normalizers), None)
        is_call = isinstance(module, LAYER_TYPES) and context.method_name == "__call__"
        if is_call and module.path and Called(module, (), normalizer).obstacle is None:
            call = _without_kernel(module)
        output = call(*args, **options)
        shape = getattr(module.get_variable("params", "kernel"), "shape", ())
        found[".".join(module.path)] = Called(module, tuple(shape), normalizer)
        del normalizers[depth:]
        return output

    with nn.intercept_methods(record):
        yield


def _without_kernel(layer: nn.Module) -> Any:
    """Return the layer's call over a kernel of zeros."""
    held = layer.variables["params"]
    zeros = jnp.zeros(held["kernel"].shape, held["kernel"].dtype)
    alone = layer.clone(parent=None)

    def call(*args: Any, **options: Any) -> Any:
        return alone.apply({"params": {**held, "kernel": zeros}}, *args, **options)

    return call

"""A Linen model, and the modules and kernels that its call uses."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta, unfreeze
from flax.errors import ScopeCollectionNotFound, ScopeParamNotFoundError
from flax.linen.dtypes import promote_dtype
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jaxtyping import PyTree

from increlora_jax.errors import InputError
from increlora_jax.nn.products import is_plain_product
from increlora_jax.nn.tree import Arrays, TreeShape, take_apart

Call = Callable[..., PyTree]
Context = nn.module.InterceptorContext

LAYER_TYPES = (nn.Dense, nn.DenseGeneral, nn.Einsum)
NORMALIZERS = (nn.WeightNorm, nn.SpectralNorm)

REMEDY = "Give all that `init` returns"
"""The way out of variables that lack something."""

PRODUCTS = ("dot_general", "dot_general_cls", "promote_dtype")
"""Attributes of Linen's layers for another function than x · W."""


class LinenModel:
    """Linen module with its variables and an example of its call.

    The call, `module.apply(variables, *inputs, **options)`, is only traced, so that arrays may be
    `jax.ShapeDtypeStruct`s. Boxes with partitioning metadata are taken off the variables.

    Args:
        module: the module.
        variables: as `module.init` returns them.
        inputs: of the call.
        options: of the call; options of `apply`, such as `rngs`, among them.

    Raises:
        InputError: the variables are no collections, or lack a parameter.

    >>> import flax.linen as nn
    >>> import increlora_jax as il
    >>> module, x = nn.Sequential([nn.Dense(4)]), jnp.ones((1, 3))
    >>> model = il.LinenModel(module, module.init(jax.random.key(0), x), x)
    >>> list(il.attach(model).adapters)
    ['layers_0']
    """

    def __init__(self, module: nn.Module, variables: PyTree, *inputs: PyTree, **options: PyTree):
        self.module = module
        self.variables = unfreeze(meta.unbox(variables))
        self.inputs = inputs
        self.options = options
        for name, held in self.variables.items():
            if not isinstance(held, Mapping):
                raise InputError(
                    f"the variables of {type(module).__name__} are no collections: {name!r} is a "
                    f"{type(held).__name__}. {REMEDY}"
                )
        if "params" not in self.variables:  # also right for a module without parameters
            trace_call(self)

    def take_apart(self) -> tuple[TreeShape, Arrays]:
        """Return the shape of the variables and their arrays by path, without `params`."""
        shape, arrays = take_apart(self.variables)
        names = tuple(name and name.removeprefix("params.") for name in shape.names)
        plain = {name.removeprefix("params."): array for name, array in arrays.items()}
        return shape._replace(names=names), plain


class Called(NamedTuple):
    """Module that the model's call uses.

    Attributes:
        module: bound to its variables.
        kernel: the shape that the module sees, () without a kernel.
        normalizer: the class around the module that computes another kernel; None without.
        is_read: whether the kernel is read beside the module's own call; default: False.
    """

    module: nn.Module
    kernel: tuple[int, ...]
    normalizer: str | None
    is_read: bool = False

    @property
    def obstacle(self) -> str | None:
        """Return why no update can be added to the layer's output; None if one can."""
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
        has_batch = np.size(getattr(self.module, "batch_dims", ())) > 0  # 0 is the first axis
        return f"a {kind} with batch_dims" if has_batch else None


def is_layer(module: nn.Module) -> bool:
    """Return whether a module can be adapted: a layer of Flax, or a subclass that calls like it."""
    calls = [kind.__call__ for kind in LAYER_TYPES]
    return isinstance(module, LAYER_TYPES) and type(module).__call__ in calls


def trace_call(model: LinenModel) -> dict[str, Called]:
    """Collect every module that the model's call uses, by path.

    Raises:
        InputError: the variables lack a parameter that the call uses.
    """
    shape, arrays = model.take_apart()
    call, given = take_apart((model.inputs, model.options))
    found: dict[str, Called] = {}

    def apply(arrays: Mapping[str, PyTree], given: Mapping[str, PyTree]) -> PyTree:
        inputs, own = call.fill(given)
        # Not of parameters: if mutable, they are outputs, and all of them would count as read.
        mutable = [name for name in model.variables if name != "params"] or False
        options = {"rngs": {"dropout": jax.random.key(0)}, "mutable": mutable, **own}
        return model.module.apply(shape.fill(arrays), *inputs, **options)

    try:
        with _recorded(found):
            traced = jax.make_jaxpr(apply)(arrays, given)
    except (ScopeParamNotFoundError, ScopeCollectionNotFound) as error:
        name, held = type(model.module).__name__, ", ".join(map(repr, model.variables))
        raise InputError(
            f"the variables of {name} lack a parameter: {str(error).partition(' (http')[0]} They "
            f"have the collections {held or '(none)'}. {REMEDY}"
        ) from error
    names = jax.tree.leaves({name: name for name in arrays})
    read = {name for name, is_read in zip(names, find_read(traced.jaxpr), strict=False) if is_read}
    return {
        path: called._replace(is_read=f"{path}.kernel" in read) for path, called in found.items()
    }


def find_read(jaxpr: Jaxpr) -> list[bool]:
    """Return of each argument of a program whether an operation reads it, in inner programs too."""
    read = {id(var) for var in jaxpr.outvars}
    for eqn in jaxpr.eqns:
        given = eqn.invars[1:] if eqn.primitive.name == "cond" else eqn.invars
        inner = _inner_programs(eqn)
        if not inner or any(len(sub.invars) != len(given) for sub in inner):
            read |= set(map(id, eqn.invars))
            continue
        for sub in inner:
            read |= {id(v) for v, is_read in zip(given, find_read(sub), strict=True) if is_read}
    return [id(var) in read for var in jaxpr.invars]


def _inner_programs(eqn: JaxprEqn) -> list[Jaxpr]:
    values = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: isinstance(v, Jaxpr))
    plain = [value.jaxpr if isinstance(value, ClosedJaxpr) else value for value in values]
    return [value for value in plain if isinstance(value, Jaxpr)]


def call_of(inputs: PyTree, options: Mapping[str, PyTree]) -> TreeShape:
    """Return the part of a call that decides which modules it uses: all but its arrays."""
    own = {name: value for name, value in options.items() if name not in ("rngs", "mutable")}
    return take_apart((inputs, own))[0]


@contextmanager
def _recorded(found: dict[str, Called]) -> Iterator[None]:
    """Record every module that is called; layers compute with a kernel of zeros meanwhile.

    Any use of the model's own kernel is then a read beside its layer's call.
    """
    normalizers: list[str] = []

    def record(
        call: Call, args: Sequence[PyTree], options: Mapping[str, PyTree], context: Context
    ) -> PyTree:
        module, depth = context.module, len(normalizers)
        if isinstance(module, NORMALIZERS):
            normalizers.append(type(module).__name__)
        normalizer = next(iter(normalizers), None)
        is_call = isinstance(module, LAYER_TYPES) and context.method_name == "__call__"
        is_call = is_call and module.has_variable("params", "kernel")
        if is_call and module.path and Called(module, (), normalizer).obstacle is None:
            call = _without_kernel(module)
        output = call(*args, **options)
        shape = getattr(module.get_variable("params", "kernel"), "shape", ())
        found[".".join(module.path)] = Called(module, tuple(shape), normalizer)
        del normalizers[depth:]
        return output

    with nn.intercept_methods(record):
        yield


def _without_kernel(layer: nn.Module) -> Call:
    """Return the layer's call over a kernel of zeros."""
    held = layer.variables["params"]
    zeros = jnp.zeros(held["kernel"].shape, held["kernel"].dtype)
    alone = layer.clone(parent=None)

    def call(*args: PyTree, **options: PyTree) -> PyTree:
        return alone.apply({"params": {**held, "kernel": zeros}}, *args, **options)

    return call

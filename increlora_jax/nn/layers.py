"""NNX layers with an adapter beside their frozen kernel."""

import inspect
from functools import cache
from math import prod
from types import CodeType
from typing import ClassVar, TypeGuard, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from increlora_jax.core.adapter import Update
from increlora_jax.core.meshes import find_explicit_mesh
from increlora_jax.core.probe import ScoreProbe
from increlora_jax.errors import InputError
from increlora_jax.nn.effective import (
    EffectiveModule,
    EffectiveParameter,
    copy_as,
    derive,
)
from increlora_jax.nn.kernels import EinsumAxes, KernelAxes, effective_weight, rows_of_axes
from increlora_jax.nn.low_rank import LowRankAdapter
from increlora_jax.nn.products import is_plain_product
from increlora_jax.quantization import Kernel, as_dense, is_quantized_by

Layer = nnx.Linear | nnx.LinearGeneral | nnx.Einsum
"""A layer of Flax that takes an adapter."""


def _effective_kernel(layer: "AdaptedLayer", kernel: Kernel) -> Array | None:
    """Compute W + ΔW for a read beside the layer's own call; None of a merged layer."""
    held = vars(layer)
    is_merged = held.get("adapter") is None or held.get("original") is not None
    return None if is_merged else layer.sum_kernel(kernel)


def refuse_second_use(gradient: Array, update: Update) -> Array:
    """Refuse to score a layer by its kernel: the layer's call has scored it already."""
    raise InputError(
        f"the loss reads the kernel {list(gradient.shape)} of an adapted layer beside the layer's "
        "call, and is_called_once=True says that it does not. Prepare with is_called_once=False"
    )


class AdaptedLayer(EffectiveModule):
    """Layer of Flax with an `adapter`; each subclass defines how its kernel is a matrix.

    A subclass is also a subclass of the layer that it replaces, and has the same names. The layer's
    own call uses W and adds the adapter's output; other code that reads the kernel reads W + ΔW.
    """

    plain: ClassVar[type[nnx.Module]]
    added: ClassVar[tuple[str, ...]] = ("adapter", "original")  # to what the plain layer has
    kernel = EffectiveParameter("kernel", _effective_kernel)
    dtype: DTypeLike | None
    adapter: LowRankAdapter
    original: nnx.Param[Kernel] | None  # the kernel before a merge

    @classmethod
    def wrap(cls, layer: nnx.Module, adapter: LowRankAdapter) -> "AdaptedLayer":
        """Return a layer of Flax with an adapter."""
        adapted = copy_as(cls, layer)
        adapted.adapter = adapter
        adapted.original = nnx.data(None)
        return adapted

    def unwrap(self) -> nnx.Module:
        """Return the plain layer of Flax, with the kernel as it is now."""
        layer = copy_as(self.plain, self)
        for name in self.added:
            delattr(layer, name)
        return layer

    def merge(self) -> None:
        """Add ΔW to the kernel and turn the adapter off; the original is kept for `unmerge`.

        The sum is a variable of its own: other places that share the original keep its value.
        A quantised kernel becomes a plain one.
        """
        if self.original is not None:
            raise InputError("this layer is merged already. Call unmerge first")
        stored, own = self._stored, self._stored.copy()
        # In the adapter's precision: a bf16 kernel is rounded once, after the sum.
        own.set_value(self.sum_kernel(stored.get_value()))
        self.original, self.kernel = stored, own

    def sum_kernel(self, kernel: Kernel) -> Array:
        """Compute W + ΔW."""
        update, probe = self.adapter.update, self.adapter.probe
        if isinstance(probe, ScoreProbe):
            probe = ScoreProbe.of(refuse_second_use, probe.value)
        return effective_weight(as_dense(kernel), self.kernel_axes(), update, probe)

    def unmerge(self) -> None:
        """Put the original kernel back, bit for bit."""
        if self.original is None:
            raise InputError("this layer is not merged. Call merge first")
        self.kernel, self.original = self.original, nnx.data(None)

    @property
    def _stored(self) -> nnx.Param[Kernel]:
        """Return the kernel's variable, of W."""
        stored: nnx.Param[Kernel] = vars(self)["kernel"]
        return stored

    def _call_plain(self, *args: object, **options: object) -> Array:
        """Call the plain layer, over W."""
        output: Array = copy_as(self.plain, self)(*args, **options)
        return output

    def _add_adapter(self, x: Array, y: Array) -> Array:
        if self.original is not None:
            return y
        x = x if self.dtype is None else x.astype(self.dtype)
        return self.adapter.add_to(y, x, self._to_rows, self._from_rows)

    def kernel_axes(self) -> KernelAxes:
        """Return the axes of the kernel, from the end; uses attributes of the plain layer only."""
        raise TypeError(f"{type(self).__name__} must say how its kernel is a matrix")

    def _to_rows(self, x: Array) -> Float[Array, "*batch inputs"]:
        return x

    def _from_rows(self, y: Float[Array, "*batch outputs"]) -> Array:
        return y


class AdaptedLinear(AdaptedLayer, nnx.Linear):
    """`nnx.Linear` with an adapter."""

    plain = nnx.Linear

    def __call__(self, inputs: Array, *places: object, **options: object) -> Array:
        """Apply the layer and its adapter to the last axis."""
        if self._is_best_summed(inputs):
            return nnx.Linear.__call__(self._summed(), inputs, *places, **options)
        return self._add_adapter(inputs, self._call_plain(inputs, *places, **options))

    def _is_best_summed(self, inputs: Array) -> bool:
        is_stock = self.dot_general is jax.lax.dot_general and self.precision is None
        if self.original is not None or not is_stock:
            return False
        kernel = self._stored.get_value()
        if find_explicit_mesh((inputs, kernel)):
            return False  # the sharding of y is known only once the plain layer was called
        dtype = self.dtype or jnp.result_type(inputs.dtype, kernel.dtype)
        rows = prod(inputs.shape[:-1])
        return dtype == kernel.dtype and self.adapter.is_best_summed(rows, kernel.dtype)

    def _summed(self) -> nnx.Linear:
        """Return a plain layer that multiplies by W + ΔW."""
        layer = copy_as(nnx.Linear, self)
        # Past Flax, which lets no transformation change a module that was made outside of it.
        vars(layer)["dot_general"] = lambda x, kernel, *_, **__: self.adapter.apply_sum(x, kernel)
        return layer

    def kernel_axes(self) -> KernelAxes:
        """Return the axes of [in_features, out_features]."""
        return KernelAxes((-2,), (-1,))


class AdaptedLinearGeneral(AdaptedLayer, nnx.LinearGeneral):
    """`nnx.LinearGeneral` with an adapter over its flattened feature axes."""

    plain = nnx.LinearGeneral

    def __call__(self, inputs: Array, *places: object, **options: object) -> Array:
        """Apply the layer and its adapter to the contracted axes."""
        return self._add_adapter(inputs, self._call_plain(inputs, *places, **options))

    def kernel_axes(self) -> KernelAxes:
        """Return the axes of [*in_features, *out_features]."""
        if self.batch_axis:
            raise InputError("a LinearGeneral with batch_axis cannot be adapted. Exclude it")
        outputs = len(self.out_features)
        both = outputs + len(self.in_features)
        return KernelAxes(tuple(range(-both, -outputs)), tuple(range(-outputs, 0)))

    def _to_rows(self, x: Array) -> Float[Array, "*batch inputs"]:
        return rows_of_axes(x, self.axis)

    def _from_rows(self, y: Float[Array, "*batch outputs"]) -> Array:
        return y.reshape(*y.shape[:-1], *self.out_features)


class AdaptedEinsum(AdaptedLayer, nnx.Einsum):
    """`nnx.Einsum` with an adapter between the axes it contracts and those it makes."""

    plain = nnx.Einsum

    def __call__(
        self, inputs: Array, einsum_str: str | None = None, *places: object, **options: object
    ) -> Array:
        """Apply the layer and its adapter; the equation is the constructor's."""
        if einsum_str not in (None, self.einsum_str):
            raise InputError(
                f"an adapted Einsum keeps its equation {self.einsum_str!r}; got {einsum_str!r}. "
                "Call it without einsum_str"
            )
        return self._add_adapter(inputs, self._call_plain(inputs, None, *places, **options))

    def kernel_axes(self) -> KernelAxes:
        """Return the contracted and the new axes of the kernel."""
        return EinsumAxes.parse(self.einsum_str).kernel_axes()

    def _to_rows(self, x: Array) -> Float[Array, "*batch inputs"]:
        return EinsumAxes.parse(self.einsum_str).to_rows(x)

    def _from_rows(self, y: Float[Array, "*batch outputs"]) -> Array:
        return EinsumAxes.parse(self.einsum_str).from_rows(y, self.kernel_shape)


ADAPTED_TYPES: dict[type[nnx.Module], type[AdaptedLayer]] = {
    adapted.plain: adapted for adapted in (AdaptedLinear, AdaptedLinearGeneral, AdaptedEinsum)
}
"""The layer of Flax → the adapted layer that takes its place."""


LAYER_TYPES = tuple(ADAPTED_TYPES)
_OWN_NAMES = {name for name, value in vars(AdaptedLayer).items() if inspect.isroutine(value)}
_OWN_NAMES = {"adapter", "original", "plain", "added"} | {
    n for n in _OWN_NAMES if not n.startswith("__")
}


_PRODUCTS = ("dot_general", "dot_general_cls", "promote_dtype", "einsum_op")
"""Arguments of Flax's layers for another function than x · W."""


def is_layer(module: nnx.Module) -> TypeGuard[Layer]:
    """Return whether a module can be adapted: a layer of Flax, or a subclass that calls like it."""
    return isinstance(module, LAYER_TYPES) and find_obstacle(module) is None


def find_obstacle(layer: nnx.Module) -> str | None:
    """Return why a layer, or a subclass of one, cannot be adapted; None if it can."""
    kind = next(kind for kind in LAYER_TYPES if isinstance(layer, kind))
    held, name = vars(layer), type(layer).__name__
    if _adapted_type(type(layer)) is None:
        return f"a {name}, which uses the kernel in another way than nnx.{kind.__name__} does"
    if taken := sorted(_OWN_NAMES & held.keys()):
        return f"a {name} with an attribute {taken[0]!r}, a name that an adapted layer needs"
    defaults = inspect.signature(kind.__init__).parameters
    for product in _PRODUCTS:
        own = held.get(product)
        if own is None or own is defaults[product].default or is_quantized_by(own):
            continue
        if not is_plain_product(product, own):
            return f"a {name} with a {product} of its own, through which no update could be merged"
    if held.get("batch_axis"):
        return f"a {name} with batch_axis"
    shape, own = tuple(held["kernel"].shape), _shape_alone(layer)
    if len(shape) > len(own) and shape[-len(own) :] != own:
        return (
            f"a {name} with a kernel {list(shape)}, which does not end with its own {list(own)}. "
            "Stack layers along leading axes, as nnx.vmap(…, out_axes=0) does, or give the pytree "
            "nnx.to_pure_dict(nnx.state(model))"
        )
    return None


def _shape_alone(layer: nnx.Module) -> tuple[int, ...]:
    """Return the shape of the kernel of a layer that is in no stack."""
    match layer:
        case nnx.Linear():
            return layer.in_features, layer.out_features
        case nnx.LinearGeneral():
            return *layer.in_features, *layer.out_features
    return tuple(getattr(layer, "kernel_shape", ()))


@cache
def _adapted_type(kind: type[nnx.Module]) -> type[AdaptedLayer] | None:
    """Return the class that takes a layer's place; None if the layer cannot be adapted.

    A subclass of a layer of Flax gets a class of its own: the adapted layer stays its instance.
    """
    for plain, adapted in ADAPTED_TYPES.items():
        if kind is plain:
            return adapted
        if issubclass(kind, plain) and _calls_like(kind, plain):
            own = derive(kind, "Adapted", (adapted, kind), {"plain": kind})
            return cast(type[AdaptedLayer], own)
    return None


def _calls_like(kind: type, plain: type) -> bool:
    """Return whether only the plain layer's own methods use the kernel."""
    added = kind.__mro__[: kind.__mro__.index(plain)]
    held = {name: value for base in reversed(added) for name, value in vars(base).items()}
    if held.keys() & ({"__call__", "__getattribute__", "kernel"} | _OWN_NAMES):
        return False
    return not any(
        "kernel" in _names_in(getattr(getattr(value, "fget", value), "__code__", None))
        for name, value in held.items()
        if name != "__init__"
    )


def _names_in(code: CodeType | None) -> set[str]:
    if code is None:
        return set()
    inner = [_names_in(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)


def wrap_layer(layer: nnx.Module, adapter: LowRankAdapter) -> AdaptedLayer:
    """Give a layer an adapter."""
    return _adapted_type_of(layer).wrap(layer, adapter)


def kernel_axes(layer: nnx.Module) -> KernelAxes:
    """Return the axes of a plain layer's kernel."""
    return _adapted_type_of(layer).kernel_axes(layer)  # type: ignore[arg-type]  # reads no more


def _adapted_type_of(layer: nnx.Module) -> type[AdaptedLayer]:
    adapted = _adapted_type(type(layer))
    if adapted is None:
        raise TypeError(f"{type(layer).__name__} cannot be adapted")
    return adapted

"""NNX layers that carry an adapter beside their frozen kernel."""

import inspect
from collections.abc import Hashable
from functools import cache
from math import prod
from types import CodeType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from increlora_jax.core.adapter import Adapter, Scaling, Slots, Update, effective_update
from increlora_jax.core.probe import Probe, ScoreProbe
from increlora_jax.core.product import apply_sum, apply_update, is_sum_cheaper
from increlora_jax.dropout import Dropout
from increlora_jax.errors import InputError
from increlora_jax.nn.effective import EffectiveParameter, set_stored
from increlora_jax.nn.initial import Start, start_small
from increlora_jax.nn.kernels import EinsumAxes, KernelAxes, effective_weight, rows_of_axes
from increlora_jax.nn.products import is_plain_product
from increlora_jax.quantization import as_dense, is_quantized_by


class AdapterParam(nnx.LoRAParam):
    """A trainable array of an adapter; other trainers know it as a `LoRAParam`."""


class SlotState(nnx.Variable):
    """A mask or a birth of an adapter's slots: state, never differentiated."""


class LowRankAdapter(nnx.Module):
    """s · ((dropout(x)·A) ∘ λ̂) · B with masked slots; see `core.adapter` for the equation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        max_rank: int,
        initial_rank: int,
        scaling: Scaling,
        dropout: float,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        stack: tuple[int, ...] = (),
        start: Start = start_small,
    ):
        adapter, slots = start(rngs, (*stack, inputs, outputs), max_rank, initial_rank, dtype)
        for name, value in adapter._asdict().items():
            setattr(self, name, AdapterParam(value))
        for name, value in slots._asdict().items():
            setattr(self, name, SlotState(value))
        self.dropout = _dropout(dropout, rngs, stack)
        self.scaling = scaling
        self.scale: SlotState | None = nnx.data(None)  # s where it does not follow `scaling`
        self.probe: Probe | None = nnx.data(None)

    @property
    def parameters(self) -> Adapter:
        """The trainable arrays."""
        return Adapter(*(getattr(self, name)[...] for name in Adapter._fields))

    @property
    def slots(self) -> Slots:
        """The masks and births."""
        return Slots(*(getattr(self, name)[...] for name in Slots._fields))

    @property
    def update(self) -> Update:
        """The update at the present parameters and masks."""
        scaling = self.scaling if self.scale is None else self.scale[...]
        return effective_update(self.parameters, self.slots, scaling)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Compute the adapter's part of the layer's output.

        Raises:
            InputError: a stack of layers that is called as a whole, or not sliced as a whole.
        """
        return apply_update(self.dropout(x), self._one_update(), self.probe)

    def is_best_summed(self, rows: int, dtype: Any) -> bool:
        """Return whether ΔW is best added to the kernel of a product of so many rows.

        Elsewhere than on a CPU a product of float32 rounds its factors, and ΔW would go first.
        """
        update = self._one_update()
        is_plain = self.dropout.rate == 0 or bool(self.dropout.deterministic)
        is_exact = dtype == update.A.dtype and jax.default_backend() == "cpu"
        return is_plain and is_exact and is_sum_cheaper(rows, update)

    def apply_sum(self, x: Array, kernel: Array) -> Array:
        """Compute x · (W + ΔW), without dropout."""
        return apply_sum(x, kernel, self._one_update(), self.probe)

    def _one_update(self) -> Update:
        update = self.update
        if update.A.ndim != 2 or update.slots.active.ndim != 1:
            raise InputError(
                f"an adapter with A {list(update.A.shape)} and masks "
                f"{list(update.slots.active.shape)} is called as if it were one layer's; where "
                "nnx.scan or nnx.vmap slices a stack of layers, it must slice all of its state, as "
                "in_axes=0 does (with nnx.StateAxes: {(nnx.Param, SlotState): 0})"
            )
        return update


def _dropout(rate: float, rngs: nnx.Rngs, stack: tuple[int, ...]) -> Dropout:
    """A dropout, or a stack of them, each with a stream of its own; none is drawn at rate 0."""
    if not rate:
        return Dropout(rate)

    def make(key: Array) -> Dropout:
        return Dropout(rate, rngs=nnx.Rngs(key))

    for _ in stack:
        make = nnx.vmap(make)
    key = rngs.dropout()
    return make(jax.random.split(key, stack) if stack else key)


def forget_attribute(module: nnx.Module, name: str) -> None:
    """Delete an attribute, and Flax's record of it, so that no graph definition tells of it."""
    delattr(module, name)
    recorded = vars(module)["_pytree__nodes"]
    if name in recorded:  # Flax 0.12.1 leaves it there
        kept = {other: is_data for other, is_data in recorded.items() if other != name}
        vars(module)["_pytree__nodes"] = type(recorded)(kept)


def _effective_kernel(layer: Any, kernel: Any) -> Any:
    """Compute W + ΔW for a read beside the layer's own call; None of a merged layer."""
    held = vars(layer)
    if held.get("adapter") is None or held.get("original") is not None:
        return None
    update, probe = layer.adapter.update, layer.adapter.probe
    if isinstance(probe, ScoreProbe):
        probe = ScoreProbe.of(_refuse_second_use, probe.value)
    return effective_weight(as_dense(kernel), layer.kernel_axes(), update, probe)


def _refuse_second_use(gradient: Array, update: Update) -> Array:
    """Refuse to score a layer by its kernel: the layer's call has scored it already."""
    raise InputError(
        f"the loss reads the kernel {list(gradient.shape)} of an adapted layer beside the layer's "
        "call, and is_called_once=True says that it does not. Prepare with is_called_once=False"
    )


class AdaptedLayer(nnx.Module):
    """A Flax layer that carries an `adapter`; a subclass says how its kernel is a matrix.

    Each subclass is also a subclass of the layer it replaces and keeps every name of it, so that it
    takes the layer's place unnoticed. The layer's own call uses W and adds the adapter's output;
    everything else that reads the kernel finds W + ΔW.
    """

    plain: ClassVar[type[nnx.Module]]
    kernel = EffectiveParameter("kernel", _effective_kernel)
    dtype: Any
    adapter: LowRankAdapter
    original: nnx.Param | None  # the kernel before a merge

    @classmethod
    def wrap(cls, layer: nnx.Module, adapter: LowRankAdapter) -> "AdaptedLayer":
        """Give a layer of Flax an adapter."""
        adapted = object.__new__(cls)
        vars(adapted).update(vars(layer))
        adapted.adapter = adapter
        adapted.original = nnx.data(None)
        return adapted

    def unwrap(self) -> nnx.Module:
        """Give back the plain layer of Flax, with the kernel as it is now."""
        layer = object.__new__(self.plain)
        vars(layer).update(vars(self))
        for name in ("adapter", "original"):
            forget_attribute(layer, name)  # not left out above, but for Flax's record of it
        return layer

    def merge(self) -> None:
        """Add ΔW to the kernel and rest the adapter; the original is kept for `unmerge`.

        The sum is a variable of its own: other places that share the original keep its value.
        A quantised kernel becomes a plain one.
        """
        if self.original is not None:
            raise ValueError("this layer is merged already")
        stored, own = self._stored, self._stored.copy()
        # In the adapter's precision: a bf16 kernel is rounded once, after the sum.
        own.set_value(_effective_kernel(self, stored.get_value()))
        self.original, self.kernel = stored, own

    def unmerge(self) -> None:
        """Put the original kernel back, bit for bit."""
        if self.original is None:
            raise ValueError("this layer is not merged")
        self.kernel, self.original = self.original, nnx.data(None)

    @property
    def _stored(self) -> Any:
        """The kernel's variable, of W."""
        return vars(self)["kernel"]

    def _call_plain(self, *args: Any, **options: Any) -> Array:
        """Call the plain layer, over W."""
        layer = object.__new__(self.plain)
        vars(layer).update(vars(self))
        output: Array = layer(*args, **options)
        return output

    def _graph_node_set_key(self, key: Any, value: Any) -> None:
        if not set_stored(("kernel",), self, key, value):
            super()._graph_node_set_key(key, value)

    def _add_adapter(self, x: Array, y: Array) -> Array:
        if self.original is not None:
            return y
        rows = self._to_rows(x if self.dtype is None else x.astype(self.dtype))
        return y + self._from_rows(self.adapter(rows)).astype(y.dtype)

    def kernel_axes(self) -> KernelAxes:
        """Return how the kernel is a matrix, from the end; reads only what the plain layer has."""
        raise TypeError(f"{type(self).__name__} must say how its kernel is a matrix")

    def _to_rows(self, x: Array) -> Float[Array, "*batch inputs"]:
        return x

    def _from_rows(self, y: Float[Array, "*batch outputs"]) -> Array:
        return y


class AdaptedLinear(AdaptedLayer, nnx.Linear):
    """`nnx.Linear` with an adapter."""

    plain = nnx.Linear

    def __call__(self, inputs: Array, *places: Any, **options: Any) -> Array:
        """Apply the layer and its adapter to the last axis."""
        if self._is_best_summed(inputs):
            return nnx.Linear.__call__(self._summed(), inputs, *places, **options)
        return self._add_adapter(inputs, self._call_plain(inputs, *places, **options))

    def _is_best_summed(self, inputs: Array) -> bool:
        is_stock = self.dot_general is jax.lax.dot_general and self.precision is None
        if self.original is not None or not is_stock:
            return False
        kernel = self._stored.get_value()
        dtype = self.dtype or jnp.result_type(inputs.dtype, kernel.dtype)
        rows = prod(inputs.shape[:-1])
        return dtype == kernel.dtype and self.adapter.is_best_summed(rows, kernel.dtype)

    def _summed(self) -> nnx.Linear:
        """The same layer, but that it multiplies by W + ΔW."""
        layer = object.__new__(nnx.Linear)
        vars(layer).update(vars(self))
        layer.dot_general = lambda x, kernel, *_, **__: self.adapter.apply_sum(x, kernel)
        return layer

    def kernel_axes(self) -> KernelAxes:
        """[in_features, out_features]."""
        return KernelAxes((-2,), (-1,))


class AdaptedLinearGeneral(AdaptedLayer, nnx.LinearGeneral):
    """`nnx.LinearGeneral` with an adapter over its flattened feature axes."""

    plain = nnx.LinearGeneral

    def __call__(self, inputs: Array, *places: Any, **options: Any) -> Array:
        """Apply the layer and its adapter to the contracted axes."""
        return self._add_adapter(inputs, self._call_plain(inputs, *places, **options))

    def kernel_axes(self) -> KernelAxes:
        """[*in_features, *out_features]."""
        if self.batch_axis:
            raise InputError("a LinearGeneral with batch_axis cannot be adapted; exclude it")
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
        self, inputs: Array, einsum_str: str | None = None, *places: Any, **options: Any
    ) -> Array:
        """Apply the layer and its adapter; the equation is the constructor's."""
        if einsum_str not in (None, self.einsum_str):
            raise InputError(
                f"an adapted Einsum keeps its equation {self.einsum_str!r}; got {einsum_str!r}"
            )
        return self._add_adapter(inputs, self._call_plain(inputs, None, *places, **options))

    def kernel_axes(self) -> KernelAxes:
        """The contracted and the new axes of the kernel."""
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
_OWN_NAMES = {"adapter", "original", "plain"} | {n for n in _OWN_NAMES if not n.startswith("__")}


_PRODUCTS = ("dot_general", "dot_general_cls", "promote_dtype", "einsum_op")
"""Arguments of Flax's layers that put another function in the place of x · W."""


def is_layer(module: nnx.Module) -> bool:
    """Return whether a module can be adapted: a layer of Flax, or a subclass that calls like it."""
    return isinstance(module, LAYER_TYPES) and find_obstacle(module) is None


def find_obstacle(layer: nnx.Module) -> str | None:
    """Say why a layer, or a subclass of one, cannot be adapted; None if it can."""
    kind = next(kind for kind in LAYER_TYPES if isinstance(layer, kind))
    held, name = vars(layer), type(layer).__name__
    if _adapted_type(type(layer)) is None:
        return f"a {name}, which uses the kernel in another way than nnx.{kind.__name__} does"
    if taken := sorted(_OWN_NAMES & held.keys()):
        return f"a {name} with an attribute {taken[0]!r}, a name that an adapted layer needs"
    defaults = inspect.signature(kind.__init__).parameters
    for product in _PRODUCTS:
        own = held.get(product)
        is_usual = own is None or own is defaults[product].default or is_quantized_by(own)
        if not (is_usual or is_plain_product(product, own)):
            return f"a {name} with a {product} of its own, through which no update could be merged"
    if held.get("batch_axis"):
        return f"a {name} with batch_axis"
    return None


@cache
def _adapted_type(kind: Hashable) -> type[AdaptedLayer] | None:
    """Return the class that takes a layer's place; None if the layer cannot be adapted.

    A subclass of a layer of Flax gets a class of its own: the adapted layer stays its instance.
    """
    for plain, adapted in ADAPTED_TYPES.items():
        if kind is plain:
            return adapted
        if isinstance(kind, type) and issubclass(kind, plain) and _calls_like(kind, plain):
            attributes = {"plain": kind, "__module__": kind.__module__, "__doc__": kind.__doc__}
            make: Any = type(kind)
            made: type[AdaptedLayer] = make(f"Adapted{kind.__name__}", (adapted, kind), attributes)
            return made
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
    """Return how a plain layer's kernel is a matrix, or a stack of them."""
    return _adapted_type_of(layer).kernel_axes(layer)  # type: ignore[arg-type]


def _adapted_type_of(layer: nnx.Module) -> type[AdaptedLayer]:
    adapted = _adapted_type(type(layer))
    if adapted is None:
        raise TypeError(f"{type(layer).__name__} cannot be adapted")
    return adapted


def matrix_shape(layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a plain layer's kernel seen as a matrix."""
    return kernel_axes(layer).matrix_shape(layer.kernel.shape)

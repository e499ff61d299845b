"""NNX layers that carry an adapter beside their frozen kernel."""

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from increlora_jax.core.adapter import (
    Adapter,
    Scaling,
    Score,
    Slots,
    Update,
    apply_update,
    effective_update,
    init_slots,
)
from increlora_jax.errors import InputError

INIT_STD = 0.02
"""Standard deviation of A and B in every slot at the start (DESIGN §2)."""


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
    ):
        normal = jax.nn.initializers.normal(INIT_STD)
        self.A = AdapterParam(normal(rngs.params(), (inputs, max_rank), dtype))
        self.lam = AdapterParam(jnp.zeros(max_rank, dtype))
        self.B = AdapterParam(normal(rngs.params(), (max_rank, outputs), dtype))
        slots = init_slots(max_rank, initial_rank)
        self.active = SlotState(slots.active)
        self.reserve = SlotState(slots.reserve)
        self.is_advancing = SlotState(slots.is_advancing)
        self.lambda_born = SlotState(slots.lambda_born)
        self.matrix_born = SlotState(slots.matrix_born)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.scaling = scaling
        self.score: Score | None = None
        self.probe: Array | None = nnx.data(None)  # see `core.adapter.apply_update`
        self.has_probed = False

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
        return effective_update(self.parameters, self.slots, self.scaling)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Compute the adapter's part of the layer's output.

        Raises:
            InputError: a second call under one scalar probe, whose cotangent would be a sum of
                scores where the score of the summed gradient is wanted.
        """
        if self.probe is not None and self.probe.ndim == 0:
            if self.has_probed:
                raise InputError(
                    "an adapted layer is called more than once in a forward pass, which a fused "
                    "score cannot tell from one call; set gradient_accumulation_steps to 2 or "
                    "more, or importance to lambda_gradient, both of which add up before scoring"
                )
            self.has_probed = True
        return apply_update(self.dropout(x), self.update, self.probe, self.score)


class AdaptedLayer(nnx.Module):
    """A Flax layer that carries an `adapter`; a subclass says how its kernel is a matrix.

    Each subclass is also a subclass of the layer it replaces and keeps every name of it, so that it
    takes the layer's place unnoticed.
    """

    plain: ClassVar[type[nnx.Module]]
    kernel: nnx.Param
    dtype: Any
    adapter: LowRankAdapter
    original: nnx.Variable | None  # the kernel before a merge

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
            delattr(layer, name)  # not left out above: Flax's own list of names must lose it too
        return layer

    def merge(self) -> None:
        """Add ΔW to the kernel and rest the adapter; the original kernel is kept for `unmerge`."""
        if self.original is not None:
            raise ValueError("this layer is merged already")
        kernel = self.kernel[...]
        self.original = nnx.Variable(kernel)
        # In the adapter's precision: a bf16 kernel is rounded once, after the sum.
        self.kernel[...] = (kernel + self._as_kernel(self.adapter.update.delta)).astype(
            kernel.dtype
        )

    def unmerge(self) -> None:
        """Put the original kernel back, bit for bit."""
        if self.original is None:
            raise ValueError("this layer is not merged")
        self.kernel[...] = self.original[...]
        self.original = nnx.data(None)

    def _add_adapter(self, x: Array, y: Array) -> Array:
        if self.original is not None:
            return y
        rows = self._to_rows(x if self.dtype is None else x.astype(self.dtype))
        return y + self._from_rows(self.adapter(rows)).astype(y.dtype)

    def matrix_shape(self) -> tuple[int, int]:
        """(inputs, outputs) of the kernel seen as a matrix; asks only what the plain layer has."""
        raise TypeError(f"{type(self).__name__} must say how its kernel is a matrix")

    def _to_rows(self, x: Array) -> Float[Array, "*batch inputs"]:
        return x

    def _from_rows(self, y: Float[Array, "*batch outputs"]) -> Array:
        return y

    def _as_kernel(self, delta: Float[Array, "inputs outputs"]) -> Array:
        return delta.reshape(self.kernel.shape)


class AdaptedLinear(AdaptedLayer, nnx.Linear):
    """`nnx.Linear` with an adapter."""

    plain = nnx.Linear

    def __call__(self, inputs: Array, *places: Any, **options: Any) -> Array:
        """Apply the layer and its adapter to the last axis."""
        return self._add_adapter(inputs, nnx.Linear.__call__(self, inputs, *places, **options))

    def matrix_shape(self) -> tuple[int, int]:
        """(in_features, out_features)."""
        return self.in_features, self.out_features


class AdaptedLinearGeneral(AdaptedLayer, nnx.LinearGeneral):
    """`nnx.LinearGeneral` with an adapter over its flattened feature axes."""

    plain = nnx.LinearGeneral

    def __call__(self, inputs: Array, *places: Any, **options: Any) -> Array:
        """Apply the layer and its adapter to the contracted axes."""
        return self._add_adapter(
            inputs, nnx.LinearGeneral.__call__(self, inputs, *places, **options)
        )

    def matrix_shape(self) -> tuple[int, int]:
        """The products of in_features and of out_features."""
        if self.batch_axis:
            raise InputError("a LinearGeneral with batch_axis cannot be adapted; exclude it")
        return prod(self.in_features), prod(self.out_features)

    def _to_rows(self, x: Array) -> Float[Array, "*batch inputs"]:
        axes = sorted(axis % x.ndim for axis in self.axis)  # as Flax does, whatever their order
        last = range(x.ndim - len(axes), x.ndim)
        moved = jnp.moveaxis(x, axes, tuple(last))
        return moved.reshape(*moved.shape[: last.start], -1)

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
        return self._add_adapter(
            inputs, nnx.Einsum.__call__(self, inputs, None, *places, **options)
        )

    def matrix_shape(self) -> tuple[int, int]:
        """The products of the contracted and of the new axes of the kernel."""
        axes = EinsumAxes.parse(self.einsum_str)
        sizes = axes.kernel_sizes(self.kernel_shape)
        return prod(sizes[a] for a in axes.contracted), prod(sizes[a] for a in axes.new)

    def _to_rows(self, x: Array) -> Float[Array, "*batch inputs"]:
        axes = EinsumAxes.parse(self.einsum_str)
        moved = jnp.einsum(f"{axes.inputs}->{axes.kept}{axes.contracted}", x)
        return moved.reshape(*moved.shape[: moved.ndim - len(axes.contracted)], -1)

    def _from_rows(self, y: Float[Array, "*batch outputs"]) -> Array:
        axes = EinsumAxes.parse(self.einsum_str)
        sizes = axes.kernel_sizes(self.kernel_shape)
        split = y.reshape(*y.shape[:-1], *(sizes[a] for a in axes.new))
        return jnp.einsum(f"{axes.kept}{axes.new}->{axes.outputs}", split)

    def _as_kernel(self, delta: Float[Array, "inputs outputs"]) -> Array:
        axes = EinsumAxes.parse(self.einsum_str)
        sizes = axes.kernel_sizes(self.kernel_shape)
        split = delta.reshape([sizes[a] for a in axes.contracted + axes.new])
        return jnp.einsum(f"{axes.contracted}{axes.new}->{axes.kernel}", split)


class EinsumAxes(NamedTuple):
    """The axes of `inputs,kernel->outputs`, by what becomes of them."""

    inputs: str
    kernel: str
    outputs: str
    contracted: str  # kernel axes summed against the input
    new: str  # kernel axes of the output
    kept: str  # input axes of the output, the ellipsis among them

    @classmethod
    def parse(cls, equation: str | None) -> "EinsumAxes":
        """Read an equation of two operands, the second one the kernel."""
        if equation is None:
            raise InputError(
                "an Einsum without einsum_str of its own cannot be adapted; exclude it"
            )
        operands, outputs = equation.replace(" ", "").split("->")
        inputs, kernel = operands.split(",")
        contracted = "".join(a for a in kernel if a in inputs and a not in outputs)
        new = "".join(a for a in kernel if a in outputs and a not in inputs)
        if set(contracted + new) != set(kernel):
            raise InputError(
                f"the Einsum {equation!r} has a kernel axis that is neither contracted with the "
                "input nor new in the output; it cannot be adapted, exclude it"
            )
        ellipsis = "..." if "..." in inputs else ""
        kept = ellipsis + "".join(a for a in inputs if a in outputs and a != ".")
        return cls(inputs, kernel, outputs, contracted, new, kept)

    def kernel_sizes(self, shape: Sequence[int]) -> dict[str, int]:
        """The length of each kernel axis."""
        return dict(zip(self.kernel, shape, strict=True))


ADAPTED_TYPES: dict[type[nnx.Module], type[AdaptedLayer]] = {
    adapted.plain: adapted for adapted in (AdaptedLinear, AdaptedLinearGeneral, AdaptedEinsum)
}
"""The layer of Flax → the adapted layer that takes its place."""


def matrix_shape(layer: nnx.Module) -> tuple[int, int]:
    """(inputs, outputs) of a plain layer's kernel seen as a matrix."""
    return ADAPTED_TYPES[type(layer)].matrix_shape(layer)  # type: ignore[arg-type]

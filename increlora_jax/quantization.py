"""A frozen kernel in 8 or 4 bits, spread out only while a product needs it."""

import re
from dataclasses import dataclass, replace
from functools import partial
from math import gcd
from types import EllipsisType, ModuleType
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8, UInt8

from increlora_jax.errors import InputError

Kind = Literal["none", "int8", "int4", "nf4"]
"""Plain; whole numbers of 8 or 4 bits; the 4-bit quantiles of a normal distribution (QLoRA)."""

TILE = 64
"""Inputs of one output that share a scale, at most (QLoRA's block, arXiv 2305.14314)."""

# The largest weight is kept just below where rounding would leave the range of the integers: what
# a conversion makes of what is outside is every backend's own.
_CALIBRATION = "absmax,1.00001"

_ZERO = 8
"""What an int4 of 0 is stored as: to find signs again, integers would have to wrap around, and
XLA's CPU (jaxlib 0.10) does not let them where it fuses them with a product."""


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=["kind"])
@dataclass(frozen=True)
class QuantizedKernel:
    """A kernel [inputs, outputs] as numbers of few bits and a scale for each tile of inputs.

    Two values of 4 bits lie in one byte, the first of them in its lower half: how JAX itself keeps
    an int4 depends on the backend, and its ahead-of-time programs do not take it.
    """

    values: Int8[Array, "*stack inputs outputs"] | UInt8[Array, "*stack pairs outputs"]
    scale: Float[Array, "*stack tiles outputs"]
    kind: Kind

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's; that of a stack of kernels has further axes before."""
        *stack, rows, outputs = self.values.shape
        return *stack, rows if self.kind == "int8" else 2 * rows, outputs

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype that the kernel is spread out to."""
        return self.scale.dtype

    def __getitem__(self, index: EllipsisType) -> Self:
        """All of it, as Flax reads a variable's value."""
        return self

    def astype(self, dtype: DTypeLike) -> Self:
        """Spread it out to another dtype."""
        return replace(self, scale=self.scale.astype(dtype))


Kernel = Array | QuantizedKernel


@partial(jax.jit, static_argnames="kind")
def quantize(kernel: Float[Array, "inputs outputs"], kind: Kind) -> QuantizedKernel:
    """W ≈ Q ∘ s, with a scale s for each tile of inputs of each output, in the dtype of W."""
    rounded = _import_qwix().quantize(
        kernel.astype(jnp.float32),
        kind if kind == "nf4" else jnp.dtype(kind),
        channelwise_axes=(1,),
        tiled_axes={0: gcd(kernel.shape[0], TILE)},
        calibration_method=_CALIBRATION,
        scale_dtype=kernel.dtype,
    )
    match kind:
        case "int8":
            values = rounded.qvalue
        case "int4":
            values = _pack(rounded.qvalue.astype(jnp.int8) + _ZERO)
        case _:
            values = _pack(rounded.qvalue)
    return QuantizedKernel(values, rounded.scale, kind)


def as_dense(kernel: Kernel) -> Array:
    """Spread a kernel out; a plain one stays."""
    if not isinstance(kernel, QuantizedKernel):
        return kernel
    qwix = _import_qwix()
    values = kernel.values if kernel.kind == "int8" else _unpack(kernel.values)
    zero = jnp.full((1, 1), _ZERO, jnp.uint8) if kernel.kind == "int4" else None
    return qwix.dequantize(qwix.QArray(values, kernel.scale, zero, kernel.kind))


def store_like(parameter: Any, value: Array) -> Kernel:
    """Quantise a value where a model's parameter is quantised."""
    is_whole = not isinstance(parameter, QuantizedKernel)
    return value if is_whole else quantize(value, parameter.kind)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def multiply(
    x: Float[Array, "*batch inputs"], kernel: QuantizedKernel, precision: Any = None
) -> Float[Array, "*batch outputs"]:
    """x·W, of which the backward pass keeps the quantised W and nothing else; W has no gradient."""
    return jnp.matmul(x, as_dense(kernel), precision=precision)


def _multiply_forward(x: Array, kernel: QuantizedKernel, precision: Any) -> tuple[Array, Any]:
    return multiply(x, kernel, precision), kernel


def _multiply_backward(precision: Any, kernel: QuantizedKernel, dy: Array) -> tuple[Array, None]:
    # W is spread out a second time and not kept since the forward pass: the compiler may neither
    # take the two for one nor begin before dy is there.
    kernel, dy = jax.lax.optimization_barrier((kernel, dy))
    return jnp.matmul(dy, as_dense(kernel).T, precision=precision), None


multiply.defvjp(_multiply_forward, _multiply_backward)


def store_quantized(model: nnx.Module, layers: str, kind: Kind) -> None:
    """Make an abstract model one whose dense layers are quantised, in place.

    `layers` is the regex of their paths. Loading then quantises what it reads for them.

    Raises:
        InputError: the library that rounds is missing, or a layer cannot be quantised so.
    """
    if kind == "none":
        return
    _import_qwix()
    for parts, layer in nnx.iter_modules(model):
        path = ".".join(map(str, parts))
        if isinstance(layer, nnx.Linear) and re.fullmatch(layers, path):
            kernel = layer.kernel.get_value()
            if kind != "int8" and kernel.shape[0] % 2:
                raise InputError(
                    f"--quantize-base {kind} keeps two inputs in a byte, and {path} has "
                    f"{kernel.shape[0]}; take int8"
                )
            layer.kernel.set_value(jax.eval_shape(partial(quantize, kind=kind), kernel))
            layer.set_attributes(dot_general=_dot_general, promote_dtype=_promote)


def _import_qwix() -> ModuleType:
    try:
        import qwix
    except ImportError as error:
        raise InputError(
            f"--quantize-base needs qwix, which cannot be imported ({error}); "
            "pip install 'increlora_jax[quantization]'"
        ) from error
    return qwix


def _pack(values: Array) -> UInt8[Array, "pairs outputs"]:
    pairs = values.astype(jnp.uint8).reshape(-1, 2, values.shape[1]) & 15
    return pairs[:, 0] | (pairs[:, 1] << 4)


def _unpack(pairs: UInt8[Array, "pairs outputs"]) -> UInt8[Array, "inputs outputs"]:
    return jnp.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1, pairs.shape[1])


def _dot_general(
    x: Array, kernel: Kernel, dimension_numbers: Any, precision: Any = None, **settings: Any
) -> Array:
    """The product of a dense layer, whose kernel is a plain one again after a merge."""
    if isinstance(kernel, QuantizedKernel):
        return multiply(x, kernel, precision)
    return jax.lax.dot_general(x, kernel, dimension_numbers, precision=precision, **settings)


def is_quantized_by(function: Any) -> bool:
    """Return whether a layer's function is one that `store_quantized` has given it."""
    return function in (_dot_general, _promote)


def _promote(arrays: tuple[Any, ...], *, dtype: Any = None) -> tuple[Any, ...]:
    """As Flax does; of a quantised kernel it is the dtype that it is spread out to."""
    dtypes = [array.dtype for array in arrays if array is not None]
    wide = dtype or jnp.result_type(*dtypes)
    return tuple(None if array is None else array.astype(wide) for array in arrays)

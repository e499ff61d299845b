"""Frozen kernels stored in 8 or 4 bits, made dense only for a product."""

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
"""Formats: dense; integers of 8 or 4 bits; 4-bit quantiles of a normal distribution (QLoRA)."""

TILE = 64
"""Largest number of inputs of one output that share a scale (QLoRA's block, arXiv 2305.14314)."""

# The largest weight is kept just below the last integer: backends differ in how they convert values
# out of range.
_CALIBRATION = "absmax,1.00001"

_ZERO = 8
"""Stored value of an int4 of 0.

Signed values would need integer wrap-around. XLA's CPU (jaxlib 0.10) breaks that when it fuses the
conversion with a product.
"""


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=["kind"])
@dataclass(frozen=True)
class QuantizedKernel:
    """A kernel [inputs, outputs] stored in few bits, with a scale for each tile of inputs.

    Two 4-bit values share one byte, the first in its lower half. JAX's own int4 is not used: its
    storage depends on the backend, and ahead-of-time programs do not accept it.
    """

    values: Int8[Array, "*stack inputs outputs"] | UInt8[Array, "*stack pairs outputs"]
    scale: Float[Array, "*stack tiles outputs"]
    kind: Kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense kernel; a stack of kernels has leading axes."""
        *stack, rows, outputs = self.values.shape
        return *stack, rows if self.kind == "int8" else 2 * rows, outputs

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the dense kernel."""
        return self.scale.dtype

    def __getitem__(self, index: EllipsisType) -> Self:
        """Return the kernel itself: Flax reads a variable's value as `value[...]`."""
        return self

    def astype(self, dtype: DTypeLike) -> Self:
        """Return the kernel with another dtype of its dense form."""
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
    """Return a kernel in dense form; a dense one is returned as it is."""
    if not isinstance(kernel, QuantizedKernel):
        return kernel
    qwix = _import_qwix()
    if kernel.kind == "nf4":
        return _from_quantiles(_unpack(kernel.values), kernel.scale)
    values = kernel.values if kernel.kind == "int8" else _unpack(kernel.values)
    zero = jnp.full((1, 1), _ZERO, jnp.uint8) if kernel.kind == "int4" else None
    return qwix.dequantize(qwix.QArray(values, kernel.scale, zero, kernel.kind))


def _from_quantiles(
    values: UInt8[Array, "inputs outputs"], scale: Float[Array, "tiles outputs"]
) -> Float[Array, "inputs outputs"]:
    """Return the dense form of nf4: its 16 quantiles, chosen bit by bit, times the scales.

    Qwix looks each weight up in a table. A TPU gathers so many single numbers slowly, and its
    compiler needs too long for them. Choices are exact too, and a product is fused with them.
    """
    qwix = _import_qwix()
    all_values = jnp.arange(16, dtype=jnp.uint8)[:, None]
    one = jnp.ones((1, 1), jnp.float32)  # a CPU chooses narrower numbers at more cost
    found = list(qwix.dequantize(qwix.QArray(all_values, one, None, "nf4"))[:, 0])
    for bit in range(4):
        is_set = (values >> bit) & 1 == 1
        found = [jnp.where(is_set, b, a) for a, b in zip(found[::2], found[1::2], strict=True)]
    tiles, outputs = scale.shape
    chosen = found[0].astype(scale.dtype).reshape(tiles, -1, outputs)
    return (chosen * scale[:, None]).reshape(values.shape)


def store_like(parameter: Any, value: Array) -> Kernel:
    """Quantize a value if the model's parameter is quantized."""
    is_whole = not isinstance(parameter, QuantizedKernel)
    return value if is_whole else quantize(value, parameter.kind)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def multiply(
    x: Float[Array, "*batch inputs"], kernel: QuantizedKernel, precision: Any = None
) -> Float[Array, "*batch outputs"]:
    """x·W; the backward pass keeps only the quantized W, which gets no gradient."""
    return jnp.matmul(x, as_dense(kernel), precision=precision)


def _multiply_forward(x: Array, kernel: QuantizedKernel, precision: Any) -> tuple[Array, Any]:
    return multiply(x, kernel, precision), kernel


def _multiply_backward(precision: Any, kernel: QuantizedKernel, dy: Array) -> tuple[Array, None]:
    # Barrier: otherwise XLA may keep the dense W of the forward pass, or make it dense before dy is
    # there.
    kernel, dy = jax.lax.optimization_barrier((kernel, dy))
    return jnp.matmul(dy, as_dense(kernel).T, precision=precision), None


multiply.defvjp(_multiply_forward, _multiply_backward)


def store_quantized(model: nnx.Module, layers: str, kind: Kind) -> None:
    """Quantize the dense layers of an abstract model, in place.

    Weights that are loaded later are quantized as they are read.

    Args:
        model: The abstract model.
        layers: A regex of the layers' paths.
        kind: The format.

    Raises:
        InputError: If the library `qwix` is missing, or a layer cannot be quantized.
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
                    f"{kernel.shape[0]}. Take int8"
                )
            layer.kernel.set_value(jax.eval_shape(partial(quantize, kind=kind), kernel))
            layer.set_attributes(dot_general=_dot_general, promote_dtype=_promote)


def _import_qwix() -> ModuleType:
    try:
        import qwix
    except ImportError as error:
        raise InputError(
            f"--quantize-base needs qwix, which cannot be imported ({error}). "
            "Run pip install 'increlora_jax[quantization]'"
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
    """Multiply as a dense layer does; after a merge its kernel is a dense one again."""
    if isinstance(kernel, QuantizedKernel):
        return multiply(x, kernel, precision)
    return jax.lax.dot_general(x, kernel, dimension_numbers, precision=precision, **settings)


def is_quantized_by(function: Any) -> bool:
    """Return whether `store_quantized` has set a layer's function."""
    return function in (_dot_general, _promote)


def _promote(arrays: tuple[Any, ...], *, dtype: Any = None) -> tuple[Any, ...]:
    """Bring arrays to one dtype as Flax does; a quantized kernel counts as a dense one."""
    dtypes = [array.dtype for array in arrays if array is not None]
    wide = dtype or jnp.result_type(*dtypes)
    return tuple(None if array is None else array.astype(wide) for array in arrays)

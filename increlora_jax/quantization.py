"""A frozen kernel in 8 or 4 bits, spread out only while a product needs it."""

import re
from functools import partial
from math import gcd
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from increlora_jax.errors import InputError

Kind = Literal["none", "int8", "int4", "nf4"]
"""Plain; whole numbers of 8 or 4 bits; the 4-bit quantiles of a normal distribution (QLoRA)."""

TILE = 64
"""Inputs of one output that share a scale, at most (QLoRA's block, arXiv 2305.14314)."""

QuantizedKernel = Any
"""A `qwix.QArray`: of a kernel's shape, with the dtype it is spread out to."""

Kernel = Array | QuantizedKernel

# The largest weight is half a step below where rounding would leave the range of the integers:
# what a conversion makes of what is outside is every backend's own.
_CALIBRATION = "absmax,1.00001"


def import_qwix() -> ModuleType:
    """Import the library that rounds, which is not installed by default.

    Raises:
        InputError: it is not there.
    """
    try:
        import qwix
    except ImportError as error:
        raise InputError(
            f"--quantize-base needs qwix, which cannot be imported ({error}); "
            "pip install 'increlora_jax[quantization]'"
        ) from error
    return qwix


@partial(jax.jit, static_argnames="kind")
def quantize(kernel: Float[Array, "inputs outputs"], kind: Kind) -> QuantizedKernel:
    """W ≈ Q ∘ s, with a scale s for each tile of inputs of each output, in the dtype of W."""
    return import_qwix().quantize(
        kernel.astype(jnp.float32),
        kind if kind == "nf4" else jnp.dtype(kind),
        channelwise_axes=(1,),
        tiled_axes={0: gcd(kernel.shape[0], TILE)},
        calibration_method=_CALIBRATION,
        scale_dtype=kernel.dtype,
    )


def is_quantized(kernel: Kernel) -> bool:
    """Whether it is one of these, of numbers or of shapes only, and not a plain array."""
    return hasattr(kernel, "qvalue")


def as_dense(kernel: Kernel) -> Array:
    """Spread a kernel out; a plain one stays."""
    return import_qwix().dequantize(kernel) if is_quantized(kernel) else kernel


def store_like(parameter: Kernel, value: Array) -> Kernel:
    """Quantise a value where a model's parameter is quantised."""
    return quantize(value, str(parameter.qtype)) if is_quantized(parameter) else value


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
    """
    if kind == "none":
        return
    for path, layer in nnx.iter_modules(model):
        if isinstance(layer, nnx.Linear) and re.fullmatch(layers, ".".join(map(str, path))):
            kernel = layer.kernel.get_value()
            layer.kernel.set_value(jax.eval_shape(partial(quantize, kind=kind), kernel))
            layer.dot_general, layer.promote_dtype = _dot_general, _promote


def _dot_general(
    x: Array, kernel: Kernel, dimension_numbers: Any, precision: Any = None, **settings: Any
) -> Array:
    """The product of a dense layer, whose kernel is a plain one again after a merge."""
    if is_quantized(kernel):
        return multiply(x, kernel, precision)
    return jax.lax.dot_general(x, kernel, dimension_numbers, precision=precision, **settings)


def _promote(arrays: tuple[Any, ...], *, dtype: Any = None) -> tuple[Any, ...]:
    """As Flax does; of a quantised kernel it is the dtype that it is spread out to."""
    dtypes = [array.dtype for array in arrays if array is not None]
    wide = dtype or jnp.result_type(*dtypes)
    return tuple(None if array is None else array.astype(wide) for array in arrays)

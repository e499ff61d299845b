"""The product of a dense layer in bfloat16 and float16."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def multiply_narrow(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"], *_: Any, **__: Any
) -> Float[Array, "*batch outputs"]:
    """Compute x · W in a dtype narrower than float32, as the `dot_general` of an `nnx.Linear`.

    A CPU makes a float32 result of such operands about twice as fast as a narrow one. So there,
    results of both passes are rounded after the product.
    """
    return _multiply(x, kernel)


@jax.custom_vjp
def _multiply(x: Array, kernel: Array) -> Array:
    return _contract(x, kernel, ((x.ndim - 1,), (0,)))


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _multiply(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    rows = tuple(range(x.ndim - 1))
    return _contract(dy, kernel, ((x.ndim - 1,), (1,))), _contract(x, dy, (rows, rows))


_multiply.defvjp(_forward, _backward)


def _contract(a: Array, b: Array, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    """Sum over axes of both arrays; on a CPU, round afterwards."""
    is_cpu = jax.default_backend() == "cpu"
    dtype = jnp.float32 if is_cpu else a.dtype
    found = jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=dtype)
    return found.astype(a.dtype)

"""Recognition of functions of a layer that compute x · W as Flax's own do."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

Function = Callable[..., PyTree[ArrayLike]]

_X = np.array([[0.5, -1.0, 2.0], [0.25, 3.0, -0.5]], np.float32)
_W = np.array([[1.0, 0.5], [-0.75, 2.0], [0.125, -1.5]], np.float32)
_OVER_LAST = (((1,), (0,)), ((), ()))


def is_plain_product(name: str, function: Function) -> bool:
    """Return whether a layer's function equals Flax's own on two small matrices.

    Otherwise the adapter's output cannot be added to the layer's and merged into its kernel.

    Args:
        name: the argument of the layer: dot_general, promote_dtype or einsum_op.
        function: its value.
    """
    with jax.ensure_compile_time_eval():
        try:
            given = _call(name, function)
        except (TypeError, ValueError):
            return False
        wanted = (_X, _W) if name == "promote_dtype" else (_X @ _W,)
        pairs = zip(given, wanted, strict=False)
        return bool(given) and all(bool(jnp.array_equal(a, b)) for a, b in pairs)


def _call(name: str, function: Function) -> tuple[ArrayLike, ...]:
    if name == "dot_general":
        return (function(_X, _W, _OVER_LAST, precision=None),)
    if name == "einsum_op":
        return (function("ab,bc->ac", _X, _W),)
    if name == "promote_dtype":
        try:
            return tuple(function((_X, _W), dtype=None))  # as NNX calls it
        except (TypeError, ValueError, AttributeError):
            return tuple(function(_X, _W, dtype=None))  # as Linen does
    return ()

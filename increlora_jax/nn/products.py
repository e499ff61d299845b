"""Functions that a layer puts in the place of x · W: whether they are that product."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_X = np.array([[0.5, -1.0, 2.0], [0.25, 3.0, -0.5]], np.float32)
_W = np.array([[1.0, 0.5], [-0.75, 2.0], [0.125, -1.5]], np.float32)
_OVER_LAST = (((1,), (0,)), ((), ()))


def is_plain_product(name: str, function: Any) -> bool:
    """Return whether a layer's function gives what Flax's own gives, tried on two small matrices.

    Only then the adapter's output can be added to the layer's, and merged into its kernel.

    Args:
        name: of the layer's argument: dot_general, promote_dtype or einsum_op.
        function: what the layer has there.
    """
    with jax.ensure_compile_time_eval():
        try:
            given = _call(name, function)
        except (TypeError, ValueError):
            return False
        wanted = (_X, _W) if name == "promote_dtype" else (_X @ _W,)
        pairs = zip(given, wanted, strict=False)
        return bool(given) and all(bool(jnp.array_equal(a, b)) for a, b in pairs)


def _call(name: str, function: Any) -> tuple[Any, ...]:
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

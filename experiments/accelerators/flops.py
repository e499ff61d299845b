"""FLOPs of a traced program's matrix products, recomputation included."""

from collections.abc import Iterator
from math import prod
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def count_flops(jaxpr: Any) -> int:
    """Count two for each multiplication of a matrix product; a loop counts as often as it runs."""
    return sum(_count(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _count(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        inner = prod(shape[axis] for axis in contracted)
        return 2 * inner * prod(equation.outvars[0].aval.shape)
    inside = [count_flops(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "cond":
        return max(inside)
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "pallas_call":
        times = prod(params["grid_mapping"].grid)
    return times * sum(inside)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else [value]:
            if isinstance(each, Jaxpr | ClosedJaxpr):
                yield each

"""Modules of others that multiply their input by a parameter, recognised by a trial call."""

from collections.abc import Hashable, Sequence
from string import ascii_lowercase

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from increlora_jax.errors import InputError
from increlora_jax.nn.effective import attributes_of, copy_as
from increlora_jax.nn.kernels import EinsumAxes, KernelAxes

Trials = dict[Hashable, EinsumAxes | None]
"""The equations found so far: layers alike are tried once."""


def find_equation(
    module: nnx.Module, name: str, shape: Sequence[int], axes: KernelAxes, trials: Trials
) -> EinsumAxes | None:
    """Return the equation by which a module's call uses a parameter; None if it has another use.

    A module with y(x, W + V) − y(x, W) = einsum(equation, x, V) for a drawn x, W and V of whole
    numbers takes an update as two products. The equation is the module's own `einsum_str`, or
    that of an input whose last axes are the parameter's inputs.

    Args:
        module: it has the parameter.
        name: of the parameter.
        shape: of one matrix of the parameter.
        axes: of the parameter that make a matrix.
        trials: of the model; extended.
    """
    held = attributes_of(module)
    nodes = {n: v for n, v in held.items() if isinstance(v, nnx.Variable | nnx.Pytree)}
    if not all(isinstance(node, nnx.Param) for node in nodes.values()):
        return None  # a state of its own, which a trial could change
    sizes = [(n, tuple(v.shape), str(v.dtype)) for n, v in _params_of(module).items()]
    fixed = repr([(n, v) for n, v in held.items() if n not in nodes])
    key = (type(module), name, tuple(shape), axes, tuple(sizes), fixed)
    if key not in trials:
        trials[key] = _try(module, name, shape, axes)
    return trials[key]


def _try(
    module: nnx.Module, name: str, shape: Sequence[int], axes: KernelAxes
) -> EinsumAxes | None:
    for text in (attributes_of(module).get("einsum_str"), _equation_of(len(shape), axes)):
        try:
            equation = EinsumAxes.parse(text if isinstance(text, str) else None)
        except (InputError, ValueError):
            continue
        is_of_shape = len(equation.kernel) == len(shape) and equation.kernel_axes() == axes
        if is_of_shape and _is_used_so(module, name, shape, equation):
            return equation
    return None


def _equation_of(rank: int, axes: KernelAxes) -> str:
    """Return the equation of an input whose last axes are the inputs of a kernel."""
    kernel = ascii_lowercase[:rank]
    inputs, outputs = ("".join(kernel[axis] for axis in of) for of in axes)
    return f"...{inputs},{kernel}->...{outputs}"


def _is_used_so(module: nnx.Module, name: str, shape: Sequence[int], equation: EinsumAxes) -> bool:
    draw = np.random.default_rng(0)
    params = _params_of(module)

    def whole(like: Sequence[int]) -> Array:
        return jnp.asarray(draw.integers(-4, 5, like, np.int8), params[name].dtype)

    def call(kernel: Array, others: dict[str, Array]) -> Array:
        trial = copy_as(type(module), module)
        vars(trial).update({n: nnx.Param(value) for n, value in {**others, name: kernel}.items()})
        output: Array = trial(x)  # of a stranger's class
        return output

    with jax.ensure_compile_time_eval():
        x = _draw_input(draw, shape, equation).astype(params[name].dtype)
        first, second = whole(shape), whole(shape)
        others = {n: whole(v.shape) for n, v in params.items() if n != name}
        try:
            found = call(first + second, others) - call(first, others)
        except Exception:  # a stranger's module may refuse a trial in any way
            return False
        wanted = jnp.einsum(f"{equation.inputs},{equation.kernel}->{equation.outputs}", x, second)
        return found.shape == wanted.shape and bool((found == wanted).all())


def _params_of(module: nnx.Module) -> dict[str, nnx.Param[Array]]:
    return {n: v for n, v in attributes_of(module).items() if isinstance(v, nnx.Param)}


def _draw_input(draw: np.random.Generator, shape: Sequence[int], equation: EinsumAxes) -> Array:
    """Draw an input whose rows have one entry besides 0, 2 or −3, so that all sums are exact."""
    sizes = dict(zip(equation.kernel, shape, strict=True))
    contracted = [sizes[axis] for axis in equation.contracted]
    letters = equation.kept.removeprefix("...")
    kept = [*([2, 3] if letters != equation.kept else []), *range(2, 2 + len(letters))]
    rows = np.zeros((*kept, np.prod(contracted)), np.float32)
    places = draw.integers(0, rows.shape[-1], (*kept, 1))
    np.put_along_axis(rows, places, draw.choice([2.0, -3.0], places.shape), -1)
    moved = f"{equation.kept}{equation.contracted}->{equation.inputs}"
    return jnp.einsum(moved, jnp.asarray(rows.reshape(*kept, *contracted)))

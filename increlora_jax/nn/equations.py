"""Modules of others that multiply their input by a parameter, recognised by their programs."""

from collections.abc import Hashable, Sequence
from string import ascii_lowercase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import Jaxpr, Literal
from jaxtyping import Array

from increlora_jax.errors import InputError
from increlora_jax.nn.effective import attributes_of, copy_as
from increlora_jax.nn.kernels import EinsumAxes, KernelAxes

Trials = dict[Hashable, EinsumAxes | None]
"""The equations found so far: layers alike are tried once."""

_LONG = 4099
"""Length of an axis of an input that a module could cut off."""

_ARRANGING = {
    "convert_element_type",
    "copy",
    "reshape",
    "sharding_constraint",
    "squeeze",
    "transpose",
}
_CALLS = {"closed_call", "jit", "pjit"}
_INPUT, _KERNEL, _PRODUCT, _FIXED = "input", "kernel", "product", "fixed"


def find_equation(
    module: nnx.Module, name: str, shape: Sequence[int], axes: KernelAxes, trials: Trials
) -> EinsumAxes | None:
    """Return the equation by which a module's call uses a parameter; None if it has another use.

    A module takes an update as two products if its program arranges the input x and the parameter
    W, and multiplies them once. After that, it may arrange the product and add what depends on
    neither. The equation is the module's own `einsum_str`, or that of an input whose last axes are
    the parameter's inputs. It is checked on whole numbers: y(x, W + V) − y(x, W) must be
    einsum(equation, x, V).

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
    fixed = tuple((n, v) for n, v in held.items() if n not in nodes)
    key = (type(module), name, tuple(shape), axes, tuple(sizes), fixed)
    try:
        hash(key)
    except TypeError:
        return _try(module, name, shape, axes)
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
        if is_of_shape and _Trial(module, name, shape, equation).holds():
            return equation
    return None


def _equation_of(rank: int, axes: KernelAxes) -> str:
    """Return the equation of an input whose last axes are the inputs of a kernel."""
    kernel = ascii_lowercase[:rank]
    inputs, outputs = ("".join(kernel[axis] for axis in of) for of in axes)
    return f"...{inputs},{kernel}->...{outputs}"


class _Trial:
    """Trial calls of a module with parameters of small whole numbers, whose sums are exact."""

    def __init__(
        self, module: nnx.Module, name: str, shape: Sequence[int], equation: EinsumAxes
    ) -> None:
        self.module, self.name, self.shape, self.equation = module, name, shape, equation
        self.params = _params_of(module)
        self.dtype = self.params[name].dtype
        self.draw = np.random.default_rng(0)

    def holds(self) -> bool:
        """Return whether the module is the equation, and what is added to it."""
        with jax.ensure_compile_time_eval():
            kernel, other = self._whole(self.shape), self._whole(self.shape)
            fixed = {n: self._whole(v.shape) for n, v in self.params.items() if n != self.name}

            def call(x: Array, kernel: Array) -> Array:
                trial = copy_as(type(self.module), self.module)
                values = {**fixed, self.name: kernel}
                vars(trial).update({n: nnx.Param(value) for n, value in values.items()})
                output: Array = trial(x)  # of a stranger's class
                return output

            x = self._input()
            try:
                for size in (2, _LONG):
                    of_size = jax.ShapeDtypeStruct(self._sizes(size), self.dtype)
                    if not _multiplies_once(jax.make_jaxpr(call)(of_size, kernel).jaxpr):
                        return False
                found = call(x, kernel + other) - call(x, kernel)
            except Exception:  # a stranger's module may refuse a trial in any way
                return False
            e = self.equation
            wanted = jnp.einsum(f"{e.inputs},{e.kernel}->{e.outputs}", x, other)
            return found.shape == wanted.shape and bool((found == wanted).all())

    def _whole(self, shape: Sequence[int]) -> Array:
        return jnp.asarray(self.draw.integers(-4, 5, shape, np.int8), self.dtype)

    def _sizes(self, size: int) -> tuple[int, ...]:
        """Return the shape of an input whose axes that stay have this length."""
        sizes = dict(zip(self.equation.kernel, self.shape, strict=True))
        named = self.equation.inputs.replace("...", ".")
        each = ((size, size) if axis == "." else (sizes.get(axis, size),) for axis in named)
        return tuple(length for lengths in each for length in lengths)

    def _input(self) -> Array:
        """Draw an input with few entries besides 0."""
        shape = self._sizes(2)
        x = self.draw.choice([2.0, -3.0], shape) * (self.draw.random(shape) < 8 / np.prod(shape))
        x.flat[0] = 2.0
        return jnp.asarray(x, self.dtype)


def _params_of(module: nnx.Module) -> dict[str, nnx.Param[Array]]:
    return {n: v for n, v in attributes_of(module).items() if isinstance(v, nnx.Param)}


def _multiplies_once(program: Jaxpr) -> bool:
    """Return whether a program of (x, W) arranges both, multiplies them once, and adds to that."""
    return _follow(program, [_INPUT, _KERNEL]) == [_PRODUCT]


def _follow(program: Jaxpr, given: Sequence[str]) -> list[str] | None:
    """Return the kinds of a program's results by those of its inputs; None for another program."""
    kinds: dict[Any, str] = dict.fromkeys(program.constvars, _FIXED)
    kinds |= zip(program.invars, given, strict=True)

    def kind_of(value: Any) -> str:
        return _FIXED if isinstance(value, Literal) else kinds[value]

    for step in program.eqns:
        found = _follow_step(step, [kind_of(value) for value in step.invars])
        if found is None:
            return None
        kinds |= zip(step.outvars, found, strict=True)
    return [kind_of(value) for value in program.outvars]


def _follow_step(step: Any, given: list[str]) -> list[str] | None:
    """Return the kinds of the results of one operation."""
    name, results = step.primitive.name, step.outvars
    if set(given) <= {_FIXED}:
        return [_FIXED] * len(results)
    if name in _CALLS:
        return _follow(step.params["jaxpr"].jaxpr, given)
    if name in _ARRANGING and jnp.issubdtype(results[0].aval.dtype, jnp.floating):
        return given
    if name == "dot_general" and set(given) == {_INPUT, _KERNEL}:
        return [_PRODUCT]
    if name == "add" and sorted(given) == [_FIXED, _PRODUCT]:
        return [_PRODUCT]
    return None

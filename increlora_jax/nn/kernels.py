"""A kernel of any rank as a matrix, or as a stack of matrices that each have an update."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from increlora_jax.core.adapter import Update
from increlora_jax.core.meshes import on_any_mesh
from increlora_jax.core.probe import Probe, effective_delta
from increlora_jax.errors import InputError


class KernelAxes(NamedTuple):
    """Axes of a kernel that are the inputs and the outputs of a matrix.

    All other axes, in order, are those of a stack: each of its matrices has a rank of its own.

    Attributes:
        inputs: axes that make the inputs together; default: the first.
        outputs: axes that make the outputs together; default: the second.

    >>> import increlora_jax as il
    >>> il.KernelAxes(inputs=(1,), outputs=(2, 3)).matrix_shape((12, 64, 4, 16))
    (64, 64)
    """

    inputs: tuple[int, ...] = (0,)
    outputs: tuple[int, ...] = (1,)

    def from_the_end(self, name: str, shape: Sequence[int]) -> "KernelAxes":
        """Return the same axes counted from the end, which stay when leading axes are sliced off.

        Raises:
            InputError: an axis that the kernel `name` does not have, or has twice.
        """
        rank = len(shape)
        named = [*self.inputs, *self.outputs]
        places = {axis % rank for axis in named if -rank <= axis < rank}
        if len(places) != len(named) or not self.inputs or not self.outputs:
            raise InputError(
                f"{name} {list(shape)} is no matrix by {self}: name each of its input and output "
                "axes once, as in parameters={'" + name + "': KernelAxes(inputs=(0,), "
                "outputs=(1, 2))}"
            )
        return KernelAxes(
            tuple(axis % rank - rank for axis in self.inputs),
            tuple(axis % rank - rank for axis in self.outputs),
        )

    def matrix_shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return (inputs, outputs) of a matrix of a kernel of that shape."""
        return prod(shape[a] for a in self.inputs), prod(shape[a] for a in self.outputs)

    def stack_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the lengths of the other axes, () of a single matrix."""
        return tuple(shape[a] for a in self.stack_axes(len(shape)))

    def as_kernel(
        self, delta: Float[Array, "*stack inputs outputs"], shape: Sequence[int]
    ) -> Array:
        """Arrange matrices as a kernel of that shape."""
        rank = len(shape)
        places = [*self.stack_axes(rank), *(a % rank for a in (*self.inputs, *self.outputs))]
        return jnp.moveaxis(delta.reshape([shape[a] for a in places]), tuple(range(rank)), places)

    def stack_axes(self, rank: int) -> list[int]:
        """Return the other axes, in order, of a kernel of that rank."""
        named = {axis % rank for axis in (*self.inputs, *self.outputs)}
        return [axis for axis in range(rank) if axis not in named]


def rows_of_axes(x: Array, axes: Sequence[int]) -> Float[Array, "*batch inputs"]:
    """Merge some axes of a layer's input into one, the last."""
    chosen = sorted(axis % x.ndim for axis in axes)  # as Flax does, whatever their order
    last = range(x.ndim - len(chosen), x.ndim)
    moved = jnp.moveaxis(x, chosen, tuple(last))
    return moved.reshape(*moved.shape[: last.start], -1)


class EinsumAxes(NamedTuple):
    """Axes of the equation `inputs,kernel->outputs`, sorted by their use."""

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
                "an Einsum without einsum_str of its own cannot be adapted. Exclude it"
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

    def kernel_axes(self) -> KernelAxes:
        """Return the contracted and the new axes of the kernel."""
        inputs, outputs = (
            tuple(self.kernel.index(a) - len(self.kernel) for a in letters)
            for letters in (self.contracted, self.new)
        )
        return KernelAxes(inputs, outputs)

    def to_rows(self, x: Array) -> Float[Array, "*batch inputs"]:
        """Merge the contracted axes of the layer's input into one, the last."""
        moved = jnp.einsum(f"{self.inputs}->{self.kept}{self.contracted}", x)
        return moved.reshape(*moved.shape[: moved.ndim - len(self.contracted)], -1)

    def from_rows(self, y: Float[Array, "*batch outputs"], kernel_shape: Sequence[int]) -> Array:
        """Split the last axis into the new axes of the layer's output."""
        sizes = dict(zip(self.kernel, kernel_shape, strict=True))
        split = y.reshape(*y.shape[:-1], *(sizes[a] for a in self.new))
        return jnp.einsum(f"{self.kept}{self.new}->{self.outputs}", split)


def effective_weight(
    kernel: Array, axes: KernelAxes, update: Update, probe: Probe | None = None
) -> Array:
    """Compute W + ΔW in the adapter's precision, then round to that of W; differentiable.

    Args:
        kernel: W.
        axes: of W that make a matrix.
        update: ΔW [*stack, inputs, outputs].
        probe: the part of the backward pass to read; default: none.

    Returns:
        The effective weight, of the shape of W.
    """

    def add(kernel: Array, update: Update, probe: Probe | None) -> Array:
        delta = axes.as_kernel(effective_delta(update, probe), kernel.shape)
        return (kernel + delta).astype(kernel.dtype)

    return on_any_mesh(add, kernel, update, probe, like=kernel)


def stack_names(path: str, stack: Sequence[int]) -> list[str]:
    """Return the name of every matrix at a path: the path, or `path[3]` by place in a stack."""
    if not stack:
        return [path]
    return [f"{path}[{','.join(map(str, place))}]" for place in np.ndindex(*stack)]


def path_of(name: str) -> str:
    """Return the path of a name that `stack_names` has made."""
    return name.rpartition("[")[0] if name.endswith("]") else name


def module_order(path: str) -> list[tuple[bool, int, str]]:
    """Return the sorting key of module order: the parts of the path, numbers first and by size."""
    parts = path.split(".")
    return [(False, int(p), "") if p.isdigit() else (True, 0, p) for p in parts]

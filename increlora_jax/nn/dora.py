"""Layers whose kernel W + ΔW is scaled to a length that learns, column by column (DoRA)."""

from functools import cache
from typing import ClassVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from increlora_jax.core.adapter import Update
from increlora_jax.core.meshes import on_any_mesh
from increlora_jax.errors import InputError
from increlora_jax.nn.attach import adapted_layers, adapters_of
from increlora_jax.nn.effective import copy_as, derive
from increlora_jax.nn.layers import AdaptedLayer, AdaptedLinear
from increlora_jax.nn.paths import replace_nodes
from increlora_jax.quantization import Kernel, as_dense

MAGNITUDE = "magnitude"
"""The name of the lengths in an adapted layer."""


class DoraLinear(AdaptedLinear):
    """`nnx.Linear` that computes x · (m / ‖W + ΔW‖) ∘ (W + ΔW) + bias, with norms of columns.

    The norm takes no part in the gradient (DoRA §4.3, arXiv 2402.09353).
    """

    added: ClassVar[tuple[str, ...]] = (*AdaptedLayer.added, MAGNITUDE)
    magnitude: nnx.Param[Array]  # m [outputs]

    def __call__(self, inputs: Array, *places: object, **options: object) -> Array:
        """Apply the layer, its adapter and the lengths to the last axis."""
        y = super().__call__(inputs, *places, **options)
        if self.original is not None:
            return y
        gain = self._gain(self._stored.get_value()).astype(y.dtype)
        if self.bias is None:
            return y * gain
        return y * gain + self.bias[...].astype(y.dtype) * (1 - gain)

    def sum_kernel(self, kernel: Kernel) -> Array:
        """Compute (W + ΔW) · m / ‖W + ΔW‖."""
        return super().sum_kernel(kernel) * self._gain(kernel)

    def _gain(self, kernel: Kernel) -> Float[Array, " outputs"]:
        update = jax.tree.map(jax.lax.stop_gradient, self.adapter.update)
        dense = as_dense(kernel).astype(update.A.dtype)
        norms = on_any_mesh(column_norms, dense, update, like=self.magnitude[...])
        return self.magnitude[...] / jax.lax.stop_gradient(norms)


def column_norms(
    kernel: Float[Array, "inputs outputs"], update: Update
) -> Float[Array, " outputs"]:
    """Compute the norm of every column of W + ΔW, without making ΔW.

    ‖w + A c‖² = ‖w‖² + 2 (Aᵀ w)ᵀ c + cᵀ (Aᵀ A) c with c a column of s · diag(λ̂) B.
    """
    coefficients = (update.scale * update.lam_hat)[:, None] * update.B
    crossed = ((update.A.T @ kernel) * coefficients).sum(0)
    inner = ((update.A.T @ update.A) @ coefficients * coefficients).sum(0)
    return jnp.sqrt((kernel * kernel).sum(0) + 2 * crossed + inner)


def add_magnitudes(model: nnx.Module) -> nnx.Module:
    """Give every adapted layer its lengths, m = ‖W‖ by column, in place; return the model.

    Raises:
        InputError: an adapted place that is no `nnx.Linear`.
    """
    layers = adapted_layers(model)
    for path in adapters_of(model):
        if not isinstance(layers.get(path), AdaptedLinear):
            raise InputError(
                f"dora: {path} is no Linear layer, and its kernel has no columns of one output. "
                "Leave it out with --exclude-modules"
            )
    return replace_nodes(model, {id(layer): _with_magnitude(layer) for layer in layers.values()})


def _with_magnitude(layer: AdaptedLayer) -> DoraLinear:
    made = copy_as(_dora_type(type(layer)), layer)
    kernel, update = vars(layer)["kernel"].get_value(), layer.adapter.update
    is_abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(kernel))
    norms = jax.eval_shape if is_abstract else lambda find, *of: find(*of)
    made.magnitude = nnx.Param(norms(_first_norms, kernel, update))
    return made


def _first_norms(kernel: Kernel, update: Update) -> Array:
    dense = as_dense(kernel).astype(update.A.dtype)
    if dense.ndim != 2:
        raise InputError("dora: a stack of layers has no lengths yet. Exclude it")
    return column_norms(dense, update)


@cache
def _dora_type(kind: type[nnx.Module]) -> type[DoraLinear]:
    if kind is AdaptedLinear:
        return DoraLinear
    return cast(type[DoraLinear], derive(kind, "Dora", (DoraLinear, kind), {}))


def is_magnitude(path: str) -> bool:
    """Return whether a parameter is the lengths of a layer, by its path."""
    return path.endswith(f".{MAGNITUDE}")

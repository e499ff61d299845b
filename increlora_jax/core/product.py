"""The products of a forward pass with an update, and the evidence of their backward pass."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from increlora_jax.core.adapter import Update
from increlora_jax.core.probe import DenseProbe, Probe, Score, ScoreProbe, SlotProbe

FEW = 8
"""Slots of a buffer below which a product takes all of them."""


def apply_update(
    x: Float[Array, "*batch inputs"],
    update: Update,
    probe: Probe | None = None,
) -> Float[Array, "*batch outputs"]:
    """Compute s · ((x·A) ∘ λ̂) · B in factored form.

    The probe's gradient is the evidence of importance. That of a `ScoreProbe` is right where the
    update is applied once in a forward pass: ∂L/∂ΔW is then gone before the backward pass comes to
    the next product. Elsewhere, `spread_probe` comes first. Without a probe, or with a `SlotProbe`,
    no dense gradient is ever formed.
    """
    reading, update, value = _read_probe(update, probe)
    return _product(reading, x, update, value)


def apply_sum(
    x: Float[Array, "*batch inputs"],
    kernel: Float[Array, "inputs outputs"],
    update: Update,
    probe: Probe | None = None,
) -> Float[Array, "*batch outputs"]:
    """Compute x · (W + ΔW), ΔW = s · A diag(λ̂) B, as one product.

    Without a score the gradients stay factored. With a score, all gradients follow from
    G = ∂L/∂ΔW. In a kernel of lower precision than the adapter's the sum would round ΔW away.

    Args:
        x: the input [*batch, inputs].
        kernel: W, in the adapter's precision [inputs, outputs].
        update: the update.
        probe: as in `apply_update`; default: none.

    Returns:
        The output [*batch, outputs].
    """
    reading, update, value = _read_probe(update, probe)
    return _sum(reading, x, kernel, update, value)


Residuals = tuple[Array, Array, Update]


class Reading(NamedTuple):
    """Rule for the gradient of a probe: ∂L/∂ΔW itself or its score, in a precision."""

    dtype: DTypeLike
    score: Score | None

    def __call__(self, gradient: Array, update: Update) -> Array:
        """Compute the probe's gradient from ∂L/∂ΔW."""
        found = gradient if self.score is None else self.score(gradient, update)
        return found.astype(self.dtype)


def _read_probe(update: Update, probe: Probe | None) -> tuple[Reading | None, Update, Array | None]:
    """Return how to read a probe, the update and the value of the probe.

    A probe of slots is added to λ̂, and has the gradient of λ̂.
    """
    match probe:
        case None:
            return None, update, None
        case SlotProbe(value):
            # Also of a reserve that is not applied yet.
            slots = update.slots._replace(is_advancing=jnp.ones_like(update.slots.is_advancing))
            return None, update._replace(lam_hat=update.lam_hat + value, slots=slots), None
        case DenseProbe(value):
            return Reading(value.dtype, None), update, value
        case ScoreProbe(value, score):
            return Reading(value.dtype, score.func), update, value


def is_sum_cheaper(rows: int, update: Update) -> bool:
    """Return whether in·out·S multiplications, for ΔW, are fewer than rows·(in+out)·S."""
    inputs, outputs = update.A.shape[-2], update.B.shape[-1]
    return rows * (inputs + outputs) > inputs * outputs


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(reading: Reading | None, x: Array, update: Update, probe: Array | None) -> Array:
    return _product_forward(reading, x, update, probe)[0]


def _product_forward(
    reading: Reading | None, x: Array, update: Update, probe: Array | None
) -> tuple[Array, Residuals]:
    coefficients = update.scale * update.lam_hat
    hidden = _matmul(x, update.A)
    return _matmul(hidden * coefficients.astype(x.dtype), update.B), (x, hidden, update)


def _product_backward(
    reading: Reading | None, residuals: Residuals, dy: Array
) -> tuple[Array, Update, Array | None]:
    x, hidden, update = residuals
    x_rows, hidden, dy_rows = (a.reshape(-1, a.shape[-1]) for a in (x, hidden, dy))
    inner, d_update = _from_rows(x_rows, hidden, dy_rows, update)
    dx = _matmul(inner, update.A.T).reshape(x.shape)
    found = None
    if reading is not None:
        found = reading(_outer(x_rows, dy_rows, reading.dtype), update)
    # Barrier: otherwise XLA may delay the update and the score, and keep x, dy or the dense
    # gradient of every layer alive.
    dx, d_update, found = jax.lax.optimization_barrier((dx, d_update, found))
    return dx, d_update, found


_product.defvjp(_product_forward, _product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(
    reading: Reading | None, x: Array, kernel: Array, update: Update, probe: Array | None
) -> Array:
    return _sum_forward(reading, x, kernel, update, probe)[0]


def _sum_forward(
    reading: Reading | None, x: Array, kernel: Array, update: Update, probe: Array | None
) -> tuple[Array, Residuals]:
    summed = kernel + update.delta
    return x @ summed, (x, summed, update)


def _sum_backward(
    reading: Reading | None, residuals: Residuals, dy: Array
) -> tuple[Array, Array, Update, Array | None]:
    x, summed, update = residuals
    x_rows, dy_rows = (a.reshape(-1, a.shape[-1]) for a in (x, dy))
    gradient = _outer(x_rows, dy_rows, summed.dtype)  # XLA leaves it out if the kernel is frozen
    dx = (dy_rows @ summed.T).reshape(x.shape)
    if reading is None:
        return dx, gradient, _from_used_slots(x_rows, dy_rows, update), None
    return dx, gradient, _from_gradient(gradient, update), reading(gradient, update)


_sum.defvjp(_sum_forward, _sum_backward)


def _from_rows(x: Array, hidden: Array, dy: Array, update: Update) -> tuple[Array, Update]:
    """Compute ∂L/∂(x·A) and the gradients of the update from all rows of x, x·A and ∂L/∂y."""
    coefficients = update.scale * update.lam_hat
    d_hidden = _matmul(dy, update.B.T)
    inner = d_hidden * coefficients.astype(dy.dtype)
    # Slots first, and scaled last: XLA could otherwise move the transposition into the product and
    # sum along the rows of x, at a third of the speed.
    by_x = _outer(d_hidden, x, update.A.dtype)
    d_A = (by_x * coefficients[:, None]).T
    d_B = _outer(hidden, dy, update.B.dtype) * coefficients[:, None]
    d_coefficients = jnp.sum(update.A.T * by_x, axis=-1)
    return inner, _cotangents(d_A, d_coefficients, d_B, update)


def _from_used_slots(x: Array, dy: Array, update: Update) -> Update:
    """Compute the gradients from the first half, quarter, … of the slots if no others are applied.

    A slot that is not applied needs no gradient: its λ̂ is 0 for every λ.
    """

    def first(count: int, x: Array, dy: Array, update: Update) -> Update:
        A, lam_hat, B = update.A[:, :count], update.lam_hat[:count], update.B[:count]
        _, found = _from_rows(x, x @ A, dy, update._replace(A=A, lam_hat=lam_hat, B=B))
        more = (0, update.lam_hat.size - count)
        return found._replace(
            A=jnp.pad(found.A, ((0, 0), more)),
            lam_hat=jnp.pad(found.lam_hat, more),
            B=jnp.pad(found.B, (more, (0, 0))),
        )

    counts = [update.lam_hat.size]
    while counts[0] % 2 == 0 and counts[0] >= 2 * FEW:
        counts.insert(0, counts[0] // 2)
    applied = update.slots.applied
    too_few = jnp.array([applied[count:].any() for count in counts[:-1]], jnp.int32).sum()
    branches = [partial(first, count) for count in counts]
    return jax.lax.switch(_same_for_all(too_few), branches, x, dy, update)


@jax.custom_batching.custom_vmap
def _same_for_all(choice: Array) -> Array:
    """Return the choice; under `vmap` the largest of all, so that one branch is computed."""
    return choice


@_same_for_all.def_vmap
def _largest(axis_size: int, in_batched: list[bool], choice: Array) -> tuple[Array, bool]:
    return _same_for_all(choice.max()), False


def _from_gradient(gradient: Array, update: Update) -> Update:
    """Compute the gradients from G: s·G·Bᵀ∘λ̂ of A, s·diag(Aᵀ·G·Bᵀ) of λ̂, s·λ̂∘Aᵀ·G of B."""
    coefficients = update.scale * update.lam_hat
    left = update.A.T @ gradient
    d_coefficients = jnp.sum(left * update.B, axis=-1)
    d_A = (gradient @ update.B.T) * coefficients
    return _cotangents(d_A, d_coefficients, left * coefficients[:, None], update)


def _cotangents(d_A: Array, d_coefficients: Array, d_B: Array, update: Update) -> Update:
    return Update(
        A=d_A,
        lam_hat=update.scale * d_coefficients,
        B=d_B,
        scale=jnp.sum(update.lam_hat * d_coefficients),
        slots=None,  # type: ignore[arg-type]  # masks and births have no cotangent
    )


def _matmul(x: Array, matrix: Array) -> Array:
    """Compute x·matrix in the activations' dtype: a bf16 model multiplies in bf16."""
    return x @ matrix.astype(x.dtype)


def _outer(x: Array, y: Array, dtype: DTypeLike) -> Array:
    """Compute xᵀ·y over all rows, accumulated in the parameters' dtype."""
    over_rows = (((0,), (0,)), ((), ()))
    return jax.lax.dot_general(x, y, over_rows, preferred_element_type=dtype)

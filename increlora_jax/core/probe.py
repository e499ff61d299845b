"""Probes: zeros of a forward pass whose cotangents are the evidence of importance.

A probe changes no output. Its type says which part of the backward pass it reads; its gradient has
the same type and holds the part.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from increlora_jax.core.adapter import Update, over_stack
from increlora_jax.core.meshes import on_any_mesh

Score = Callable[[Array, Update], Array]
"""(∂L/∂ΔW [inputs, outputs], the update) → the raw importance [] of a module."""


class SlotProbe(NamedTuple):
    """Zero added to λ̂, whose gradient is ∂L/∂λ̂."""

    value: Float[Array, "*stack slots"]


class DenseProbe(NamedTuple):
    """Zero added to ΔW, whose gradient is ∂L/∂ΔW."""

    value: Float[Array, "*stack inputs outputs"]


class ScoreProbe(NamedTuple):
    """Zero whose gradient is `score(∂L/∂ΔW, update)`.

    The score is a part of the tree's structure, not a leaf.
    """

    value: Float[Array, "*stack"]
    score: Partial

    @classmethod
    def of(cls, score: Score, value: Float[Array, "*stack"]) -> "ScoreProbe":
        """Make a probe of a score."""
        return cls(value, Partial(score))


Probe = SlotProbe | DenseProbe | ScoreProbe
Spread = SlotProbe | DenseProbe
"""A probe whose gradients may be summed over all uses of a layer."""


def spread_probe(probe: Probe | None, update: Update) -> Spread | None:
    """Return a dense probe for the probe of a score; other probes stay.

    The gradients of all uses of the dense probe are summed before they are scored, so that a layer
    that is called several times counts once.
    """
    if not isinstance(probe, ScoreProbe):
        return probe
    return DenseProbe(_spread(probe.score.func, probe.value, jax.lax.stop_gradient(update)))


def effective_delta(
    update: Update, probe: Probe | None = None
) -> Float[Array, "*stack inputs outputs"]:
    """Compute the dense ΔW, for a kernel that is read once or with a spread probe."""
    match spread_probe(probe, update):
        case SlotProbe(value):
            return update._replace(lam_hat=update.lam_hat + value).delta
        case DenseProbe(value):
            return update.delta + value
        case None:
            return update.delta


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _spread(score: Score, value: Array, update: Update) -> Array:
    like = jax.eval_shape(jnp.matmul, update.A, update.B)
    return jnp.zeros(like.shape, value.dtype, device=like.sharding)


def _spread_forward(score: Score, value: Array, update: Update) -> tuple[Array, Update]:
    return _spread(score, value, update), update


def _spread_backward(score: Score, update: Update, gradient: Array) -> tuple[Array, None]:
    scores = over_stack(score, update.scale.ndim)
    found = on_any_mesh(scores, gradient, update, like=update.scale)
    return found.astype(gradient.dtype), None


_spread.defvjp(_spread_forward, _spread_backward)

"""The importance of a module: the evidence of a score, its equation, and its averages."""

from bisect import bisect_left
from collections.abc import Callable
from enum import Enum
from inspect import signature
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from increlora_jax.core.adapter import Update
from increlora_jax.core.schedule import Number, as_dtype


class Evidence(Enum):
    """Part of the task loss's gradient that a score reads.

    Attributes:
        NONE: no part.
        SLOTS: ∂L/∂λ̂ [slots].
        DENSE: ∂L/∂ΔW [inputs, outputs].

    >>> import increlora_jax as il
    >>> [evidence.value for evidence in il.Evidence]
    ['none', 'slots', 'dense']
    """

    NONE = "none"
    SLOTS = "slots"
    DENSE = "dense"


class ImportanceFunction(NamedTuple):
    """Rule for the raw importance I of a module.

    Attributes:
        evidence: the part of the gradient that the score reads.
        score: (evidence, update, key) → I [] of one matrix. Without evidence the first argument is
            None. A dense score is called in the backward pass, without a key.
        is_smoothed: whether modules are ranked by Ī·Ū of the averages of I, or by I itself.

    >>> import increlora_jax as il
    >>> largest = lambda gradient, update, key=None: abs(gradient).max()
    >>> il.ImportanceFunction(il.Evidence.DENSE, largest, is_smoothed=True).evidence.value
    'dense'
    """

    evidence: Evidence
    score: Callable[..., Float[Array, ""]]
    is_smoothed: bool


def find_misfit(function: ImportanceFunction) -> str | None:
    """Return the problem with the arguments of a score, or None if it can be called."""
    arguments = (None, None) if function.evidence is Evidence.DENSE else (None, None, None)
    try:
        signature(function.score).bind(*arguments)
    except TypeError as error:
        return f"score(evidence, update, key) cannot be called: {error}. A dense one gets no key"
    return None


class ImportanceState(NamedTuple):
    """Averages over steps, one entry a module."""

    sensitivity: Float[Array, " modules"]
    uncertainty: Float[Array, " modules"]


def init_importance(modules: int, dtype: DTypeLike) -> ImportanceState:
    """Start both averages at 0."""
    return ImportanceState(jnp.zeros(modules, dtype), jnp.zeros(modules, dtype))


def update_importance(
    raw: Float[Array, " modules"], state: ImportanceState, beta1: Number, beta2: Number
) -> ImportanceState:
    """Move Ī ← β₁Ī + (1−β₁)I, then Ū ← β₂Ū + (1−β₂)|I − Ī| with the new Ī (paper §3.2).

    Args:
        raw: I of this step [modules].
        state: the averages before.
        beta1: β₁, from 0 to 1.
        beta2: β₂, from 0 to 1.
    """
    beta1, beta2 = as_dtype(beta1, raw.dtype), as_dtype(beta2, raw.dtype)
    sensitivity = beta1 * state.sensitivity + (1 - beta1) * raw
    uncertainty = beta2 * state.uncertainty + (1 - beta2) * jnp.abs(raw - sensitivity)
    return ImportanceState(sensitivity, uncertainty)


def lasting_steps(beta1: float, beta2: float) -> int:
    """Count the steps after which a score is gone from both averages of float32.

    With β the larger decay, a score k steps old weighs at most k·βᵏ in Ī and Ū. Below 2⁻³² this is
    less than half of the last digit, 2⁻²⁴, even of averages 256 times smaller than the score.
    """
    decay = max(beta1, beta2)
    return 1 + bisect_left(range(1, 2**40), True, key=lambda k: k * decay**k < 2.0**-32)


def short_window(beta1: float, beta2: float, interval: int) -> int:
    """Count the steps before a round that are scored if some of their exactness may be given up.

    Older scores weigh at most a tenth in the averages: β^window ≤ 0.1, with β the larger decay. But
    the window is at most half of the interval between rounds.
    """
    decay = max(beta1, beta2)
    tenth = 1 + bisect_left(range(1, 2**40), True, key=lambda k: decay**k <= 0.1)
    return min(tenth, -(-interval // 2))


def sensitivity(gradient: Array, update: Update, key: Array | None = None) -> Array:
    """Compute I = Σ |ΔW ∘ ∂L/∂ΔW| / √(in·out) (paper §3.2); ΔW includes the reserve."""
    delta = update.delta
    return jnp.sum(jnp.abs(delta * gradient)) / jnp.sqrt(delta.size)


def lambda_gradient(gradient: Array, update: Update, key: Array | None = None) -> Array:
    """Compute I = Σ_active |λ·∂L/∂λ| + Σ_reserve |∂L/∂λ|, which needs no dense gradient.

    The first sum is the sensitivity of the slots in use. The second is the gain from the slots in
    reserve per unit of λ.
    """
    used = jnp.abs(update.lam_hat * gradient)
    return jnp.sum(jnp.where(update.slots.reserve, jnp.abs(gradient), used))


def gradient_norm(gradient: Array, update: Update, key: Array | None = None) -> Array:
    """Compute I = ‖∂L/∂ΔW‖_F / √(in·out), the root mean square of the dense gradient."""
    return jnp.sqrt(jnp.mean(jnp.square(gradient)))


def magnitude(gradient: Array | None, update: Update, key: Array | None = None) -> Array:
    """Compute I = ‖ΔW‖_F / √(in·out), the root mean square of the update."""
    return jnp.sqrt(jnp.mean(jnp.square(update.delta)))


def random(gradient: Array | None, update: Update, key: Array) -> Array:
    """Draw I ~ U(0, 1) anew at every step: the baseline of every importance."""
    return jax.random.uniform(key, dtype=update.lam_hat.dtype)


def uniform(gradient: Array | None, update: Update, key: Array | None = None) -> Array:
    """Compute I = −r: the lowest rank grows first, so that all modules grow alike."""
    return -update.slots.rank.astype(update.lam_hat.dtype)


IMPORTANCE_FUNCTIONS = {
    "sensitivity": ImportanceFunction(Evidence.DENSE, sensitivity, is_smoothed=True),
    "lambda_gradient": ImportanceFunction(Evidence.SLOTS, lambda_gradient, is_smoothed=True),
    "gradient_norm": ImportanceFunction(Evidence.DENSE, gradient_norm, is_smoothed=True),
    "magnitude": ImportanceFunction(Evidence.NONE, magnitude, is_smoothed=False),
    "random": ImportanceFunction(Evidence.NONE, random, is_smoothed=False),
    "uniform": ImportanceFunction(Evidence.NONE, uniform, is_smoothed=False),
}

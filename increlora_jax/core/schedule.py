"""The learning rate as a function of age: each slot has its own warmup and horizon."""

from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

Number = int | float | Array
"""A number of the settings: a constant of a program, or an argument of it []."""

Shape = Callable[[Array, Number, Array], Array]
"""(age k, warmup w, horizon n) → the factor on the learning rate, all in optimizer steps."""


def linear(age: Array, warmup: Number, horizon: Array) -> Array:
    """Compute f = k/w while k < w, then (n − k)/(n − w) down to 0."""
    decay = (horizon - age) / jnp.maximum(horizon - warmup, 1)
    return _warmed(age, warmup, jnp.maximum(decay, 0.0))


def cosine(age: Array, warmup: Number, horizon: Array) -> Array:
    """Compute f = k/w while k < w, then ½(1 + cos π(k − w)/(n − w))."""
    progress = (age - warmup) / jnp.maximum(horizon - warmup, 1)
    return _warmed(age, warmup, 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0))))


def constant_with_warmup(age: Array, warmup: Number, horizon: Array) -> Array:
    """Compute f = k/w while k < w, then 1."""
    return _warmed(age, warmup, jnp.ones_like(age))


SHAPES: dict[str, Shape] = {
    "linear": linear,
    "cosine": cosine,
    "constant_with_warmup": constant_with_warmup,
}


def rate_at(
    step: Int[Array, ""],
    born: Int[Array, "..."],
    *,
    learning_rate: Number,
    warmup_steps: Number,
    total_steps: Number,
    restart_warmup: bool = True,
    shape: Shape = linear,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "..."]:
    """Compute lr · f(t − b; warmup, T − b), or lr · f(t; warmup, T) without restart warmup.

    Before birth the rate is 0 (paper §3.4).

    Args:
        step: t, from 0 [].
        born: b, the step of birth of each entry.
        learning_rate: lr.
        warmup_steps: steps until f is 1.
        total_steps: T, the steps of the run.
        restart_warmup: whether f counts from birth; default: True.
        shape: f; default: linear warmup and linear decay to 0.
        dtype: of the rate; default: float32.

    Returns:
        The learning rate of each entry.
    """
    start = born if restart_warmup else jnp.zeros_like(born)
    age, horizon = (step - start).astype(dtype), (total_steps - start).astype(dtype)
    return jnp.where(step >= born, learning_rate * shape(age, warmup_steps, horizon), 0.0)


def as_dtype(number: Number, dtype: DTypeLike) -> Number:
    """Return a number in the dtype of its arrays; JAX itself converts a Python number."""
    return number if isinstance(number, int | float) else number.astype(dtype)


def _warmed(age: Array, warmup: Number, after: Array) -> Array:
    return jnp.where(age < warmup, age / jnp.maximum(warmup, 1), after)

"""Choice of the tokens whose states a head reads; the last layer computes no others."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Take = Callable[[Float[Array, "batch length hidden"]], Float[Array, "rows taken hidden"]]
"""A function that takes some tokens of an array over all tokens."""


def take_all(hidden: Float[Array, "batch length hidden"]) -> Float[Array, "batch length hidden"]:
    """Take every token."""
    return hidden


def take_first(hidden: Float[Array, "batch length hidden"]) -> Float[Array, "batch 1 hidden"]:
    """Take the first token of each row."""
    return hidden[:, :1]


def take_places(places: Int[Array, " batch"]) -> Take:
    """Take one token of each row, at the given positions."""
    return lambda hidden: jnp.take_along_axis(hidden, places[:, None, None], axis=1)


def take_firsts(firsts: Int[Array, " sequences"]) -> Take:
    """Take the first token of every packed sequence; `firsts` counts over all rows."""
    return lambda hidden: hidden.reshape(-1, hidden.shape[-1])[firsts][:, None]

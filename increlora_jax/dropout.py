"""Dropout whose random numbers cost little to compute and to compile."""

from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, UInt32

_GOLDEN = np.uint32(0x9E3779B9)  # 2³² over the golden ratio, for successive calls


class Dropout(nnx.Dropout):
    """`nnx.Dropout` with cheaper random numbers, under the same name."""

    def __call__(self, inputs: Float[Array, "*shape"], **_: object) -> Float[Array, "*shape"]:
        """Set random entries to 0 and scale the others, so that the mean stays."""
        found: Array = self.take()(inputs)
        return found

    def take(self) -> Partial:
        """Return a function that drops entries by the next random numbers of the stream."""
        if self.rate == 0.0 or self.deterministic:
            return Partial(_keep_all)
        return Partial(partial(_drop, 1 - self.rate), self.rngs.key[...], self._next_call())

    def draw(self, shape: tuple[int, ...]) -> tuple[Bool[Array, "..."] | None, float]:
        """Draw the mask of the entries to keep, and return it with their scale; None keeps all."""
        if self.rate == 0.0 or self.deterministic:
            return None, 1.0
        kept = 1 - self.rate
        return draw_mask(self.rngs.key[...], kept, shape, self._next_call()), _scale(kept)

    def _next_call(self) -> Int[Array, ""]:
        call = self.rngs.count[...]
        self.rngs.count[...] = call + 1
        return call


def _keep_all(inputs: Array) -> Array:
    return inputs


def _drop(kept: float, key: Array, call: Int[Array, ""], inputs: Array) -> Array:
    return jnp.where(draw_mask(key, kept, inputs.shape, call), inputs * _scale(kept), 0)


def _scale(kept: float) -> float:
    return 1 / kept if kept else 0.0


def make_dropout(rate: float, rngs: nnx.Rngs, stack: tuple[int, ...] = ()) -> Dropout:
    """Make a dropout, or a stack of them with a stream each; at rate 0 no stream is drawn."""
    if not rate:
        return Dropout(rate)

    def make(key: Array) -> Dropout:
        return Dropout(rate, rngs=nnx.Rngs(key))

    for _ in stack:
        make = nnx.vmap(make)
    key = rngs.dropout()
    return make(jax.random.split(key, stack) if stack else key)


def draw_mask(
    key: Array, probability: float, shape: tuple[int, ...], call: Int[Array, ""] | int = 0
) -> Bool[Array, "..."]:
    """Draw independent booleans that are true with a probability, up to 2⁻³².

    Each entry is a hash of its place, the key and `call`, and depends on no other entry. So XLA
    fuses the draw into the operation that uses it. Threefry takes five times the operations.

    Args:
        key: of the mask; masks of other keys are independent.
        probability: from 0 to 1.
        shape: of the mask.
        call: number of the mask among those of the key; default 0.
    """
    first, second = jax.random.key_data(key)[:2]
    places = jax.lax.iota(jnp.uint32, prod(shape)).reshape(shape)
    bits = _mix(places ^ first, 16, 0x21F0AAAD, 15, 0x735A2D97, 15)
    calls = _GOLDEN * jnp.asarray(call, jnp.uint32)
    bits = _mix(bits + second + calls, 16, 0x7FEB352D, 15, 0x846CA68B, 16)
    return bits < np.uint32(min(round(probability * 2**32), 2**32 - 1))


def _mix(x: UInt32[Array, "..."], *steps: int) -> UInt32[Array, "..."]:
    """Shift, multiply, shift, multiply, shift: a bijection that spreads every bit over all others.

    The constants are those of lowbias32 (C. Wellons, hash-prospector, 2018) and its successor.
    """
    for step in steps:
        x = x * np.uint32(step) if step > 32 else x ^ (x >> step)
    return x

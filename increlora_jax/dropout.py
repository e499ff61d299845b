"""Dropout that draws few random bits, since the draw is most of its cost."""

from math import prod

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Bool, Float

LEVELS = 2**16
"""Levels of probability: an entry uses 16 random bits, so rates are multiples of 2⁻¹⁶."""


class Dropout(nnx.Dropout):
    """`nnx.Dropout` with a quarter of the random numbers, under the same name."""

    def __call__(self, inputs: Float[Array, "*shape"], **_: object) -> Float[Array, "*shape"]:
        """Set random entries to 0 and scale the others, so that the mean stays."""
        is_kept, scale = self.draw(inputs.shape)
        return inputs if is_kept is None else jnp.where(is_kept, inputs * scale, 0)

    def draw(self, shape: tuple[int, ...]) -> tuple[Bool[Array, "..."] | None, float]:
        """Draw the mask of the entries to keep, and return it with their scale; None keeps all."""
        if self.rate == 0.0 or self.deterministic:
            return None, 1.0
        kept = round((1 - self.rate) * LEVELS)
        scale = LEVELS / max(kept, 1)  # nothing is kept at rate 1
        return draw_mask(self.rngs(), kept, shape), scale


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


def draw_mask(key: Array, level: int, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Draw independent booleans, each true with probability `level` · 2⁻¹⁶.

    Threefry (Salmon et al. 2011) makes 64 random bits of each count. `jax.random` uses 32 of them
    for an entry; here four entries share them.
    """
    blocks = (*shape[:-1], -(-shape[-1] // 4))
    counts = jax.lax.iota(jnp.uint32, prod(blocks)).reshape(blocks)
    words = threefry2x32_p.bind(
        *jax.random.bits(key, (2,), jnp.uint32), jnp.zeros_like(counts), counts
    )
    # Compare first, concatenate then: booleans take a quarter of the memory.
    below = [half < level for word in words for half in (word & 0xFFFF, word >> 16)]
    return jnp.concatenate(below, axis=-1)[..., : shape[-1]]

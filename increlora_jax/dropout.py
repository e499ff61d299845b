"""Dropout that wastes no random bits: drawing them is most of what dropout costs."""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Bool, Float

LEVELS = 2**16
"""16 random bits decide about an entry, so a rate is rounded to a multiple of 2⁻¹⁶."""


class Dropout(nnx.Dropout):
    """`nnx.Dropout` on a quarter of its random numbers; takes its place under its name."""

    def __call__(self, inputs: Float[Array, "*shape"], **_: Any) -> Float[Array, "*shape"]:
        """Set entries to 0 at random, and scale the others up so that the mean stays."""
        is_kept, scale = self.draw(inputs.shape)
        return inputs if is_kept is None else jnp.where(is_kept, inputs * scale, 0)

    def draw(self, shape: tuple[int, ...]) -> tuple[Bool[Array, "..."] | None, float]:
        """Draw which entries are kept, None if all are, and tell what scales those up."""
        if self.rate == 0.0 or self.deterministic:
            return None, 1.0
        kept = round((1 - self.rate) * LEVELS)
        scale = LEVELS / max(kept, 1)  # nothing is kept at rate 1
        return draw_mask(self.rngs(), kept, shape), scale


def draw_mask(key: Array, level: int, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Draw independent booleans, each true with probability `level` · 2⁻¹⁶.

    Threefry (Salmon et al. 2011) makes 64 bits of each count, of which `jax.random` uses 32 for an
    entry; four entries share them here.
    """
    blocks = (*shape[:-1], -(-shape[-1] // 4))
    counts = jax.lax.iota(jnp.uint32, prod(blocks)).reshape(blocks)
    words = threefry2x32_p.bind(
        *jax.random.bits(key, (2,), jnp.uint32), jnp.zeros_like(counts), counts
    )
    # Compared before they are put side by side: booleans take a quarter of the memory.
    below = [half < level for word in words for half in (word & 0xFFFF, word >> 16)]
    return jnp.concatenate(below, axis=-1)[..., : shape[-1]]

"""Attention scores by relative position, without a gather over the scores.

The row of the position table for a query i and a key j depends only on the distance i − j. So the
rows of the 2L distances are picked once and multiplied with every token. A reshape skews the
resulting [L, 2L] to [L, L], and its transpose is a reshape too. A gather of entries from the [L,
rows] scores would need a scatter-add over them in the backward pass.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def bucket_distances(
    distances: np.ndarray, position_buckets: int, max_relative_positions: int
) -> np.ndarray:
    """Return the buckets of signed distances: one each up to half, then logarithmic."""
    half = position_buckets // 2
    far = np.maximum(np.abs(distances), half).astype(np.float32)
    # float32 throughout, as in PyTorch: a ceiling depends on the last bit.
    fraction = np.log(far / half) / np.log(np.float32((max_relative_positions - 1) / half))
    logarithmic = np.sign(distances) * (np.ceil(fraction * (half - 1)) + half)
    return np.where(np.abs(distances) <= half, distances, logarithmic).astype(int)


def find_table_rows(length: int, position_buckets: int, max_relative_positions: int) -> np.ndarray:
    """Return the row of the position table for each distance −length … length − 1, ascending.

    The table has two rows for every bucket, or for every distance if `position_buckets` is not
    positive. Larger distances share its first and last row.
    """
    distances = np.arange(-length, length)
    span = max_relative_positions
    if position_buckets > 0:
        distances = bucket_distances(distances, position_buckets, max_relative_positions)
        span = position_buckets
    return np.clip(distances + span, 0, 2 * span - 1)


class RelativePositions(NamedTuple):
    """Rows of the position table that a sequence uses, and scores of tokens against them.

    `choice` is static: the row of each distance −length … length − 1, ascending from 0.
    """

    rows: Float[Array, "rows hidden"]
    choice: np.ndarray

    def score_content_to_position(
        self,
        query: Float[Array, "batch length heads size"],
        projected: Float[Array, "rows hidden"],
        dtype: DTypeLike,
    ) -> Float[Array, "batch heads length length"]:
        """Multiply each query i with the projected row of its distance i − j to each key j."""
        rows = self.row_of_each_distance(projected, query.shape[2])
        return _skew(multiply_queries(query, rows, dtype), query.shape[1] - 1)

    def score_position_to_content(
        self,
        key: Float[Array, "batch length heads size"],
        projected: Float[Array, "rows hidden"],
        dtype: DTypeLike,
    ) -> Float[Array, "batch heads length length"]:
        """Multiply each key j with the projected row of each query's distance i − j to it."""
        rows = self.row_of_each_distance(projected, key.shape[2])
        return jnp.swapaxes(_skew(multiply_keys(key, rows, dtype), key.shape[1]), -1, -2)

    def row_of_each_distance(
        self, projected: Float[Array, "rows hidden"], heads: int
    ) -> Float[Array, "2*length {heads} size"]:
        """Pick the projected row of each distance −length … length − 1, ascending."""
        if not np.array_equal(self.choice, np.arange(len(projected))):
            # A gather of whole rows; besides that of the embeddings, the model has no other.
            projected = projected.at[self.choice].get(
                mode="promise_in_bounds", indices_are_sorted=True
            )
        return projected.reshape(-1, heads, projected.shape[-1] // heads)


def multiply_queries(
    query: Float[Array, "batch length heads size"],
    rows: Float[Array, "2*length heads size"],
    dtype: DTypeLike,
) -> Float[Array, "batch heads length 2*length"]:
    """Multiply queries and rows; query i has its product for key j at [i, length − 1 − i + j]."""
    return jnp.einsum("bqhd,rhd->bhqr", query, rows[::-1], preferred_element_type=dtype)


def multiply_keys(
    key: Float[Array, "batch length heads size"],
    rows: Float[Array, "2*length heads size"],
    dtype: DTypeLike,
) -> Float[Array, "batch heads length 2*length"]:
    """Multiply keys and rows; key j has its product for query i at [j, length + i − j]."""
    return jnp.einsum("bkhd,rhd->bhkr", key, rows, preferred_element_type=dtype)


def _skew(x: Float[Array, "*batch length 2*length"], start: int) -> jax.Array:
    """Shift row a by a to the left: out[a, b] = x[a, start + b − a]."""
    length, width = x.shape[-2:]
    # The reshape makes rows one entry shorter, so that each starts one entry further left.
    flat = x.reshape(*x.shape[:-2], length * width)
    shifted = flat[..., start : start + length * (width - 1)]
    return shifted.reshape(*x.shape[:-1], width - 1)[..., :length]

"""DeBERTa's attention as kernels for NVIDIA GPUs, by Pallas and Triton, with a backward pass.

A program handles a block of queries and loops over all keys. For the gradients of keys and values
it handles a block of keys and loops over all queries. Scores, softmax and dropped weights stay in
its registers. XLA multiplies tokens with the rows of all 2L distances, as in `relative_positions`.
Each pair of tokens then reads its entry directly, without the skew. The backward pass computes
products and scores again (Dao et al., arXiv 2205.14135): of all arrays that grow with L², only
masks are kept.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float

from increlora_jax.errors import InputError
from increlora_jax.models.layers import at_least_float32
from increlora_jax.models.relative_positions import multiply_keys, multiply_queries

AttentionImplementation = Literal["xla", "pallas"]
"""Implementation of an attention: XLA's own operations, or the kernels of this file."""

FORWARD_BLOCK, BACKWARD_BLOCK = 64, 32
"""Tokens of either side that a program handles at once; the backward pass keeps more of each."""

SMALLEST_BLOCK = 16
"""Smallest size of either side for a tensor core."""


class FusableAttention(nnx.Module):
    """An attention that either XLA or the kernels of this file compute.

    Attributes:
        attn_implementation: The chosen implementation.
        is_interpreted: Whether Pallas's interpreter runs the kernels, slowly and on any device.
    """

    attn_implementation: AttentionImplementation = "xla"
    is_interpreted: bool = False


def check_fused(model: nnx.Module, devices: Sequence[Any]) -> None:
    """Check that the kernels support a model's attention, and that one device can run them.

    Raises:
        InputError: If they do not, or the device cannot.
    """
    flag = "--attn-implementation pallas"
    if not any(isinstance(module, FusableAttention) for _, module in nnx.iter_modules(model)):
        raise InputError(
            f"{flag}: {type(model).__name__} has no attention that the kernels support, only "
            "DeBERTa has. Leave it out"
        )
    if len(devices) > 1:
        raise InputError(
            f"{flag} needs a single device, since kernels are not sharded, and this run has "
            f"{len(devices)}. Leave it out, or --mesh and --distributed"
        )
    # Triton needs NVIDIA's Ampere or later; AMD's capabilities are names, not numbers.
    if not re.fullmatch(r"([89]|\d\d)\.\d", str(getattr(devices[0], "compute_capability", ""))):
        raise InputError(
            f"{flag} needs an NVIDIA GPU of compute capability 8.0 or later, and JAX found "
            f"{devices[0].device_kind}. Leave it out, or see that JAX for CUDA is installed"
        )


def set_attention(model: nnx.Module, implementation: AttentionImplementation) -> None:
    """Set the implementation of every attention of a model, in place."""
    if implementation != "xla":
        model.set_attributes(FusableAttention, attn_implementation=implementation)


class Settings(NamedTuple):
    """Factors of scores and of the weights that dropout keeps, and the backend."""

    score_scale: float
    kept_scale: float
    is_interpreted: bool


class Attended(NamedTuple):
    """Queries, with the keys and values that they attend to.

    If positions are used, their rows are those of the distances −L … L − 1.
    """

    query: Float[Array, "batch length heads size"]
    key: Float[Array, "batch length heads size"]
    key_rows: Float[Array, "2*length heads size"] | None
    query_rows: Float[Array, "2*length heads size"] | None
    value: Float[Array, "batch length heads size"]
    is_seen: Bool[Array, "batch 1 length length"]
    is_kept: Bool[Array, "batch heads length length"] | None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_fused(settings: Settings, attended: Attended) -> Float[Array, "batch length heads size"]:
    """Σⱼ dropout(softmaxⱼ((qᵢ·kⱼ + qᵢ·key_row[i − j] + kⱼ·query_row[i − j]) · scale)) · vⱼ.

    Products with rows have the tokens' dtype; all other intermediate numbers are in float32 at
    least. An unseen key has the lowest finite score: a query without visible keys attends to all
    equally.
    """
    return _attend(settings, attended)[0]


class _Tokens(NamedTuple):
    """Arrays [batch, length, heads, size]."""

    query: Any
    key: Any
    value: Any
    d_mixed: Any = None


class _Pairs(NamedTuple):
    """Arrays [batch, heads or 1, length, …]: products with rows, masks, and sums over the keys."""

    by_query: Any
    by_key: Any
    is_seen: Any
    is_kept: Any
    peak: Any = None
    total: Any = None
    through_total: Any = None


def _attend(settings: Settings, attended: Attended) -> tuple[jax.Array, tuple]:
    tokens = _Tokens(attended.query, attended.key, attended.value)
    pairs = _Pairs(*_multiply_rows(*attended[:4]), attended.is_seen, attended.is_kept)
    batch, length, heads, _ = attended.query.shape
    wide = at_least_float32(attended.query.dtype)
    each_query = jax.ShapeDtypeStruct((batch, heads, length), wide)
    mixed, (peak, total) = _call(
        _mix_kernel, settings, FORWARD_BLOCK, tokens, pairs, attended.value, (each_query,) * 2
    )
    return mixed, (attended, mixed, peak, total)


def _differentiate(settings: Settings, kept: tuple, d_mixed: jax.Array) -> tuple[Attended]:
    attended, mixed, peak, total = kept
    products, differentiate_products = jax.vjp(_multiply_rows, *attended[:4])
    wide = at_least_float32(mixed.dtype)
    # Part of the softmax's gradient: Σ over keys of a weight times its gradient, dropout included.
    through_total = jnp.einsum("bqhd,bqhd->bhq", d_mixed.astype(wide), mixed.astype(wide))
    tokens = _Tokens(attended.query, attended.key, attended.value, d_mixed)
    pairs = _Pairs(*products, attended.is_seen, attended.is_kept, peak, total, through_total)
    call = partial(_call, settings=settings, block=BACKWARD_BLOCK, tokens=tokens, pairs=pairs)
    d_query, d_by_query = call(_query_kernel, results=tokens.query, pair_results=pairs.by_query)
    (d_key, d_value), d_by_key = call(
        _key_kernel, results=(tokens.key, tokens.value), pair_results=pairs.by_key
    )
    through_query, through_key, d_key_rows, d_query_rows = differentiate_products(
        (d_by_query, d_by_key)
    )
    return (
        attended._replace(
            query=d_query + through_query,
            key=d_key + through_key,
            key_rows=d_key_rows,
            query_rows=d_query_rows,
            value=d_value,
            is_seen=None,
            is_kept=None,
        ),
    )


attend_fused.defvjp(_attend, _differentiate)


def _multiply_rows(
    query: jax.Array, key: jax.Array, key_rows: jax.Array | None, query_rows: jax.Array | None
) -> tuple[jax.Array | None, jax.Array | None]:
    return (
        None if key_rows is None else multiply_queries(query, key_rows, query.dtype),
        None if query_rows is None else multiply_keys(key, query_rows, key.dtype),
    )


def _call(
    kernel: Callable[..., None],
    settings: Settings,
    block: int,
    tokens: _Tokens,
    pairs: _Pairs,
    results: Any,
    pair_results: Any,
) -> Any:
    """Run a kernel once for each block of each head of each sequence.

    Args:
        kernel: The kernel.
        settings: Factors and backend.
        block: Tokens of a block.
        tokens: Its inputs by token.
        pairs: Its inputs by pair of tokens.
        results: Its results by token.
        pair_results: Its results by pair.
    """
    batch, length, heads, _ = tokens.query.shape
    block = min(block, max(SMALLEST_BLOCK, pl.next_power_of_2(length)))
    outputs = (results, pair_results)
    return pl.pallas_call(
        partial(kernel, settings=settings, block=block),
        # The blocks of a head are adjacent: they read the same tokens.
        grid=(pl.cdiv(length, block), heads, batch),
        in_specs=(jax.tree.map(_spec_of_tokens, tokens), jax.tree.map(_spec_of_pairs, pairs)),
        out_specs=(
            jax.tree.map(_spec_of_tokens, results),
            jax.tree.map(_spec_of_pairs, pair_results),
        ),
        out_shape=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), outputs),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=settings.is_interpreted,
    )(tokens, pairs)


def _spec_of_tokens(x: jax.Array) -> pl.BlockSpec:
    _, length, _, size = x.shape
    return pl.BlockSpec((None, length, None, size), lambda _, head, row: (row, 0, head, 0))


def _spec_of_pairs(x: jax.Array) -> pl.BlockSpec:
    _, heads, *rest = x.shape
    origin = (0,) * len(rest)
    return pl.BlockSpec(
        (None, None, *rest), lambda _, head, row: (row, head if heads > 1 else 0, *origin)
    )


class _Tile(NamedTuple):
    """A tile of queries and keys, whose places are along one axis each."""

    query: jax.Array
    key: jax.Array
    length: int

    @property
    def is_inside(self) -> jax.Array:
        return (self.query < self.length) & (self.key < self.length)

    @property
    def by_query(self) -> tuple[jax.Array, jax.Array]:
        """Places of the products of queries with rows."""
        return self.query, self.length - 1 - self.query + self.key

    @property
    def by_key(self) -> tuple[jax.Array, jax.Array]:
        """Places of the products of keys with rows."""
        return self.key, self.length + self.query - self.key

    def read(self, pairs: Any, place: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Read an entry for each pair; 0 beyond the sequence."""
        nothing = jnp.zeros((), pairs.dtype)
        return triton.load(pairs.at[place], mask=self.is_inside, other=nothing)

    def read_each_query(self, queries: Any, otherwise: float) -> jax.Array:
        """Read an entry for each query; beyond the sequence, return `otherwise`."""
        nothing = jnp.asarray(otherwise, queries.dtype)
        is_inside = self.query < self.length
        return triton.load(queries.at[self.query], mask=is_inside, other=nothing)

    def write(self, pairs: Any, place: tuple[jax.Array, jax.Array], values: jax.Array) -> None:
        """Write an entry for each pair; also write 0 half a row further, where no pair writes."""
        triton.store(pairs.at[place], values.astype(pairs.dtype), mask=self.is_inside)
        row, column = place
        opposite = jnp.where(column < self.length, column + self.length, column - self.length)
        # At masked places, Pallas's interpreter writes back its reads, which here are out of
        # bounds.
        opposite = jnp.where(self.is_inside, opposite, 2 * self.length)
        zeros = jnp.zeros(values.shape, pairs.dtype)
        triton.store(pairs.at[row, opposite], zeros, mask=self.is_inside)


def _score(tile: _Tile, pairs: _Pairs, products: jax.Array, scale: float) -> jax.Array:
    """Add the products with rows and scale; −∞ beyond the last key."""
    wide = products.dtype
    if pairs.by_query is not None:
        products += tile.read(pairs.by_query, tile.by_query).astype(wide)
    if pairs.by_key is not None:
        products += tile.read(pairs.by_key, tile.by_key).astype(wide)
    is_seen = tile.read(pairs.is_seen, (tile.query, tile.key))
    scores = jnp.where(is_seen, products * scale, jnp.finfo(wide).min)
    return jnp.where(tile.key < tile.length, scores, -jnp.inf)


def _drop(tile: _Tile, pairs: _Pairs, weights: jax.Array, scale: float) -> jax.Array:
    if pairs.is_kept is None:
        return weights
    return jnp.where(tile.read(pairs.is_kept, (tile.query, tile.key)), weights * scale, 0)


def _mix_kernel(
    tokens: _Tokens, pairs: _Pairs, mixed: Any, sums: Any, *, settings: Settings, block: int
) -> None:
    """Mix the values for a block of queries, with a running softmax over the keys."""
    places, length, wide = _own_places(block), tokens.query.shape[0], sums[0].dtype
    query = _read_rows(tokens.query, places)

    def look_at(index: jax.Array, so_far: tuple) -> tuple:
        peak, total, result = so_far
        others = _places(index, block)
        tile = _Tile(places[:, None], others[None, :], length)
        products = _dot(query, _read_rows(tokens.key, others).T)
        scores = _score(tile, pairs, products, settings.score_scale)
        new_peak = jnp.maximum(peak, scores.max(axis=1))
        weights = jnp.exp(scores - new_peak[:, None])
        shrink = jnp.exp(peak - new_peak)
        value = _read_rows(tokens.value, others)
        kept = _drop(tile, pairs, weights, settings.kept_scale).astype(value.dtype)
        total = total * shrink + weights.sum(axis=1)
        return new_peak, total, result * shrink[:, None] + _dot(kept, value)

    # No score of a query is lower, so −∞ is never subtracted from −∞.
    peak = jnp.full(block, jnp.finfo(wide).min, wide)
    start = peak, jnp.zeros(block, wide), jnp.zeros(query.shape, wide)
    peak, total, result = jax.lax.fori_loop(0, pl.cdiv(length, block), look_at, start)
    _write_rows(mixed, places, result / total[:, None])
    for each_query, statistic in zip(sums, (peak, total), strict=True):
        triton.store(each_query.at[places], statistic, mask=places < length)


def _pass_back(
    tile: _Tile,
    pairs: _Pairs,
    products: jax.Array,
    d_kept: jax.Array,
    settings: Settings,
) -> tuple[jax.Array, jax.Array]:
    """Compute the dropped-out weights again, and the gradient of the sum of products."""
    scores = _score(tile, pairs, products, settings.score_scale)
    peak = tile.read_each_query(pairs.peak, 0)
    weights = jnp.exp(scores - peak) / tile.read_each_query(pairs.total, 1)
    d_weights = _drop(tile, pairs, d_kept, settings.kept_scale)
    d_scores = weights * (d_weights - tile.read_each_query(pairs.through_total, 0))
    is_seen = tile.read(pairs.is_seen, (tile.query, tile.key))
    d_products = jnp.where(is_seen, d_scores * settings.score_scale, 0)
    return _drop(tile, pairs, weights, settings.kept_scale), d_products


def _query_kernel(
    tokens: _Tokens, pairs: _Pairs, d_query: Any, d_by_query: Any, *, settings: Settings, block: int
) -> None:
    """Differentiate by a block of queries and by their products with rows."""
    places, length = _own_places(block), tokens.query.shape[0]
    query, d_mixed = (_read_rows(each, places) for each in (tokens.query, tokens.d_mixed))

    def look_at(index: jax.Array, d_query: jax.Array) -> jax.Array:
        others = _places(index, block)
        tile = _Tile(places[:, None], others[None, :], length)
        key, value = (_read_rows(each, others) for each in (tokens.key, tokens.value))
        products, d_kept = _dot(query, key.T), _dot(d_mixed, value.T)
        _, d_products = _pass_back(tile, pairs, products, d_kept, settings)
        if d_by_query is not None:
            tile.write(d_by_query, tile.by_query, d_products)
        return d_query + _dot(d_products.astype(key.dtype), key)

    start = jnp.zeros(query.shape, at_least_float32(query.dtype))
    result = jax.lax.fori_loop(0, pl.cdiv(length, block), look_at, start)
    _write_rows(d_query, places, result)


def _key_kernel(
    tokens: _Tokens, pairs: _Pairs, d_both: Any, d_by_key: Any, *, settings: Settings, block: int
) -> None:
    """Differentiate by a block of keys, their values and their products with rows."""
    places, length = _own_places(block), tokens.query.shape[0]
    key, value = (_read_rows(each, places) for each in (tokens.key, tokens.value))

    def look_at(index: jax.Array, so_far: tuple) -> tuple:
        d_key, d_value = so_far
        others = _places(index, block)
        tile = _Tile(others[None, :], places[:, None], length)
        query, d_mixed = (_read_rows(each, others) for each in (tokens.query, tokens.d_mixed))
        products, d_kept = _dot(key, query.T), _dot(value, d_mixed.T)
        kept, d_products = _pass_back(tile, pairs, products, d_kept, settings)
        if d_by_key is not None:
            tile.write(d_by_key, tile.by_key, d_products)
        d_key += _dot(d_products.astype(query.dtype), query)
        return d_key, d_value + _dot(kept.astype(d_mixed.dtype), d_mixed)

    start = (jnp.zeros(key.shape, at_least_float32(key.dtype)),) * 2
    both = jax.lax.fori_loop(0, pl.cdiv(length, block), look_at, start)
    for each, result in zip(d_both, both, strict=True):
        _write_rows(each, places, result)


def _places(index: jax.Array, block: int) -> jax.Array:
    return index * block + jnp.arange(block)


def _own_places(block: int) -> jax.Array:
    return _places(pl.program_id(0), block)


def _rows_at(rows: Any, places: jax.Array) -> tuple[Any, jax.Array]:
    """Return the places of rows, widened for a tensor core, and the mask of existing entries."""
    length, size = rows.shape
    columns = jnp.arange(max(SMALLEST_BLOCK, pl.next_power_of_2(size)))[None, :]
    places = places[:, None]
    return rows.at[places, columns], (places < length) & (columns < size)


def _read_rows(rows: Any, places: jax.Array) -> jax.Array:
    where, is_inside = _rows_at(rows, places)
    return triton.load(where, mask=is_inside, other=jnp.zeros((), rows.dtype))


def _write_rows(rows: Any, places: jax.Array, values: jax.Array) -> None:
    where, is_inside = _rows_at(rows, places)
    triton.store(where, values.astype(rows.dtype), mask=is_inside)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, preferred_element_type=at_least_float32(a.dtype))

"""Adapters that begin with directions of kernels, activations or gradients (`--init`)."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from increlora_jax.core.adapter import NEVER, Adapter, Slots
from increlora_jax.core.first_values import (
    activation_directions,
    compress_gradient,
    principal_directions,
    ranks_by_gradient,
    ranks_by_shares,
)
from increlora_jax.nn.initial import INIT_STD
from increlora_jax.nn.skeleton import Parts
from increlora_jax.quantization import as_dense


def begin_pissa(parts: Parts) -> Parts:
    """Begin with the first singular vectors of the kernels.

    A fixed λ of 1 takes PiSSA's values, s · A B = U σ V, and as many slots that never learn take
    its opposite, so that W stays as it is. A λ that learns begins at 0 beside unit vectors.
    """
    adapters, slots = dict(parts.adapters), dict(parts.slots)
    for path, own in parts.adapters.items():
        kernel = kernel_of(parts, path)
        if not _is_fixed(own):
            found = principal_directions(kernel, own.lam.shape[-1])
            adapters[path] = _write(own, A=found.left, B=found.right)
            continue
        rank = own.lam.shape[-1] // 2
        found = principal_directions(kernel, rank)
        slots[path] = _hold_second_half(parts.slots[path], rank)
        roots = np.sqrt(found.values)
        A, B = found.left * roots, roots[:, None] * found.right / _scale(parts, slots[path])
        lam = np.repeat([1.0, -1.0], rank)
        adapters[path] = _write(own, A=np.tile(A, 2), B=np.tile(B, (2, 1)), lam=lam)
    return parts._replace(adapters=adapters, slots=slots)


def begin_lora(parts: Parts) -> Parts:
    """Begin with LoRA's values where λ learns: B = 0, λ = 1 and A of variance 1 / (3 in).

    Only active slots begin so. Slots that open later begin as always, at λ = 0.
    """
    adapters = dict(parts.adapters)
    for path, own in parts.adapters.items():
        if _is_fixed(own):
            continue
        active = parts.slots[path].active
        stretch = (3 * own.A.shape[-2]) ** -0.5 / INIT_STD
        adapters[path] = Adapter(
            A=jnp.where(active[..., None, :], own.A * stretch, own.A),
            lam=jnp.where(active, 1, own.lam),
            B=jnp.where(active[..., None], 0, own.B),
        )
    return parts._replace(adapters=adapters)


def begin_eva(parts: Parts, moments: Mapping[str, np.ndarray]) -> Parts:
    """Begin with A of the first right singular vectors of the inputs; B and λ stay as drawn.

    Where ranks are fixed, modules whose vectors explain more get more slots of one total.

    Args:
        parts: The model, just begun.
        moments: Xᵀ X of the inputs of every module.
    """
    adapters, slots, shares = dict(parts.adapters), dict(parts.slots), {}
    for path, own in parts.adapters.items():
        left, shares[path] = activation_directions(moments[path], own.lam.shape[-1])
        adapters[path] = _write(own, A=left)
    if _can_choose(parts):
        ranks = ranks_by_shares(shares, _mean_rank(parts))
        slots = {path: _open_first(own, ranks[path]) for path, own in slots.items()}
    return parts._replace(adapters=adapters, slots=slots)


def begin_gora(parts: Parts, gradients: Mapping[str, np.ndarray]) -> Parts:
    """Begin with s · A B along -∂L/∂W, and ranks by mean |W ∘ ∂L/∂W| where they are fixed.

    A λ that learns begins at 0, beside B of the same direction and of the length drawn.

    Args:
        parts: The model, just begun.
        gradients: ∂L/∂W of every module, a mean over batches.
    """
    adapters, slots = dict(parts.adapters), dict(parts.slots)
    if _can_choose(parts):
        importance = {
            path: float(np.abs(kernel_of(parts, path) * gradient).mean())
            for path, gradient in gradients.items()
        }
        sizes = {path: (g.shape[0], g.shape[1]) for path, g in gradients.items()}
        most = max(own.lam.shape[-1] for own in adapters.values())
        ranks = ranks_by_gradient(importance, sizes, _mean_rank(parts), most)
        slots = {path: _open_first(own, ranks[path]) for path, own in slots.items()}
    for path, own in adapters.items():
        count = int(slots[path].rank) if _is_fixed(own) else own.lam.shape[-1]
        scale = _scale(parts, slots[path])
        A = np.asarray(own.A)[:, :count]
        B = compress_gradient(A, np.asarray(gradients[path]), scale)
        if not _is_fixed(own):
            lengths = np.linalg.norm(np.asarray(own.B), axis=1, keepdims=True)
            B = B * (lengths / np.maximum(np.linalg.norm(B, axis=1, keepdims=True), 1e-30))
        adapters[path] = _write(own, B=B)
    return parts._replace(adapters=adapters, slots=slots)


def kernel_of(parts: Parts, path: str) -> np.ndarray:
    """Return the dense kernel of an adapted layer in float32."""
    kernel = parts.frozen()[f"{path}.kernel"]
    return np.asarray(as_dense(kernel), np.float32)


def _is_fixed(adapter: Adapter) -> bool:
    return bool((adapter.lam == 1).all())


def _can_choose(parts: Parts) -> bool:
    """Return whether ranks are fixed, and buffers have slots for other ranks."""
    return all(map(_is_fixed, parts.adapters.values())) and any(
        int(own.rank) < own.active.shape[-1] for own in parts.slots.values()
    )


def _mean_rank(parts: Parts) -> int:
    return round(float(np.mean([int(own.rank) for own in parts.slots.values()])))


def _scale(parts: Parts, slots: Slots) -> float:
    assert parts.rules is not None
    return float(parts.rules.scaling(slots.rank, jnp.float32))


def _write(adapter: Adapter, **values: np.ndarray) -> Adapter:
    """Return an adapter whose first slots have other values, by the name of the array."""

    def write(name: str, old: Array) -> Array:
        new = jnp.asarray(values[name], old.dtype)
        return old.at[tuple(map(slice, new.shape))].set(new)

    return adapter._replace(**{name: write(name, getattr(adapter, name)) for name in values})


def _open_first(slots: Slots, rank: int) -> Slots:
    """Let the first `rank` slots be the active ones; λ never learns."""
    active = jnp.arange(slots.active.shape[-1]) < rank
    return slots._replace(active=active, matrix_born=jnp.where(active, 0, NEVER).astype(jnp.int32))


def _hold_second_half(slots: Slots, rank: int) -> Slots:
    """Let the slots from `rank` on be applied, and neither learn nor count."""
    held = jnp.arange(slots.active.shape[-1]) >= rank
    return slots._replace(
        active=jnp.ones_like(slots.active),
        reserve=held,
        matrix_born=jnp.where(held, NEVER, 0).astype(jnp.int32),
    )

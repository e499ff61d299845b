"""First values of slots from a kernel, from activations or from a gradient."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

WIDTHS = {"default": 1, "lora": 1, "pissa": 2, "eva": 2, "gora": 4}
"""Slots of a buffer over the rank, of methods whose ranks do not change.

PiSSA's second half is what it starts from, with λ = -1. EVA (ρ = 2, as in PEFT) and GoRA (from half
to four times the rank, as published) give more slots to some modules than to others.
"""

GORA_STEP = 0.05
"""γ of GoRA: the first ΔW is about as long as γ · ∂L/∂W (arXiv 2502.12171 §3)."""

FEWEST = 0.5
"""Rank that GoRA gives a module at least, over the mean rank."""


class Directions(NamedTuple):
    """Directions of a matrix, the most important first.

    Attributes:
        left: unit columns [inputs, count].
        values: of the columns, falling [count].
        right: unit rows [count, outputs].
    """

    left: np.ndarray
    values: np.ndarray
    right: np.ndarray


def principal_directions(kernel: np.ndarray, count: int) -> Directions:
    """Return the first singular vectors of W (PiSSA, arXiv 2404.02948 eq. 2 to 4)."""
    U, values, V = np.linalg.svd(np.asarray(kernel, np.float32), full_matrices=False)
    return Directions(U[:, :count], values[:count], V[:count])


def activation_directions(moment: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first right singular vectors of activations X (EVA, arXiv 2410.07170 §3).

    Args:
        moment: Xᵀ X, summed over batches [inputs, inputs].
        count: of vectors.

    Returns:
        Unit columns [inputs, count], and the share of Σ σ² that each explains [count].
    """
    values, vectors = np.linalg.eigh(np.asarray(moment, np.float64))
    falling = np.maximum(values[::-1], 0)
    total = falling.sum()
    shares = falling / total if total else falling
    return vectors[:, ::-1][:, :count].astype(np.float32), shares[:count]


def ranks_by_shares(shares: Mapping[str, np.ndarray], rank: int) -> dict[str, int]:
    """Give `rank` slots a module on average to the directions of the largest shares (EVA §3).

    Args:
        shares: of the directions that each module could have, falling.
        rank: mean rank.
    """
    budget = rank * len(shares)
    each = [
        (-share, place, name) for name, own in shares.items() for place, share in enumerate(own)
    ]
    chosen = sorted(each, key=lambda one: one[:2])[:budget]
    return {name: sum(one[2] == name for one in chosen) for name in shares}


def ranks_by_gradient(
    importance: Mapping[str, float], sizes: Mapping[str, tuple[int, int]], rank: int, most: int
) -> dict[str, int]:
    """Give ranks by the importance mean |W ∘ ∂L/∂W| (GoRA, arXiv 2502.12171 eq. 5 to 8).

    r = a · B / √(in + out), to the nearest whole number, with a the share of the importance and
    B = Σ √(in + out) · rank. A module gets at least half of `rank`.

    Args:
        importance: of every module.
        sizes: (in, out) of every module.
        rank: mean rank.
        most: slots of a module at most.
    """
    total = sum(importance.values())
    roots = {name: float(np.sqrt(sum(size))) for name, size in sizes.items()}
    budget = rank * sum(roots.values())
    fewest = max(1, round(FEWEST * rank))

    def of(name: str) -> int:
        share = importance[name] / total if total else 1 / len(sizes)
        return int(np.clip(round(share * budget / roots[name]), fewest, min(most, *sizes[name])))

    return {name: of(name) for name in sizes}


def compress_gradient(A: np.ndarray, gradient: np.ndarray, scale: float) -> np.ndarray:
    """Return B for which s · A B is about -γ · ∂L/∂W (GoRA §3.2).

    B = -ξ (AᵀA)⁻¹ Aᵀ G, where ξ = γ / (s · √(r / inputs)) makes the expected length of s · A B that
    of γ · G for a random A.

    Args:
        A: left factors [inputs, rank].
        gradient: G [inputs, outputs].
        scale: s.
    """
    inputs, rank = A.shape
    if rank == 0:
        return np.zeros((0, gradient.shape[1]), A.dtype)
    xi = GORA_STEP / (scale * np.sqrt(rank / inputs))
    solved = np.linalg.lstsq(A.astype(np.float64), gradient.astype(np.float64), rcond=None)[0]
    return (-xi * solved).astype(A.dtype)

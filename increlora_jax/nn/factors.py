"""Updates as plain pairs of factors: without masks, λ and scale, as other projects keep them."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from increlora_jax.core.adapter import Slots
from increlora_jax.errors import InputError
from increlora_jax.nn.skeleton import Parts


class Factors(NamedTuple):
    """An update of one matrix: ΔW = left · right.

    Attributes:
        left: [inputs, rank].
        right: [rank, outputs]; λ and s are in it.
    """

    left: np.ndarray
    right: np.ndarray

    @property
    def rank(self) -> int:
        """The number of slots that take part in the forward pass."""
        return int(self.left.shape[1])


def factors_of(parts: Parts) -> dict[str, Factors]:
    """Return the update of every adapted module as it is applied, the reserve that learns too.

    Raises:
        InputError: an adapter of a stack of matrices; named.
    """
    if parts.rules is None and parts.adapters:
        raise InputError("the scaling of the adapters is not known. Take a model apart by il.split")
    return {path: _factors(path, parts) for path in parts.adapters}


def _factors(path: str, parts: Parts) -> Factors:
    assert parts.rules is not None
    update = parts.update_of(path, parts.rules.scaling)
    if update.A.ndim != 2:
        raise InputError(f"{path} adapts a stack of matrices, which has no factors of its own here")
    taken = np.flatnonzero(np.asarray(update.slots.applied))
    weights = np.asarray(update.scale * update.lam_hat)[taken]
    right = weights[:, None] * np.asarray(update.B)[taken]
    return Factors(np.asarray(update.A)[:, taken], right)


def shrink(factors: Mapping[str, Factors], keep: int) -> dict[str, Factors]:
    """Keep the largest singular values of all updates together, and their vectors.

    Args:
        factors: the updates.
        keep: the number of singular values to keep.

    Returns:
        The updates with orthonormal columns on the left, the largest first; some may have rank 0.
    """
    parted = {path: decompose(own) for path, own in factors.items()}
    values = np.sort(np.concatenate([s for _, s, _ in parted.values()]))[::-1]
    # Of equal values the first modules' are kept, so that there are never more than `keep`.
    left, bound = keep, values[min(keep, len(values)) - 1] if keep else np.inf
    left -= int((values > bound).sum())
    shrunk = {}
    for path, (U, s, V) in parted.items():
        equal = min(left, int((s == bound).sum()))
        left -= equal
        rank = int((s > bound).sum()) + equal
        shrunk[path] = Factors(U[:, :rank], s[:rank, None] * V[:rank])
    return shrunk


def count_energy(factors: Mapping[str, Factors], share: float) -> int:
    """Count the singular values of all updates that hold a share of their sum of squares."""
    values = np.concatenate([decompose(own)[1] for own in factors.values()])
    energy = np.cumsum(np.sort(values**2)[::-1])
    if not len(energy) or energy[-1] == 0:
        return 0
    return int(np.searchsorted(energy, share * energy[-1] * (1 - 1e-12)) + 1)


def decompose(factors: Factors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the thin SVD of left · right in float64, without the dense product.

    Returns:
        U [inputs, rank], the singular values [rank] in descending order, and V [rank, outputs].
    """
    Q, R = np.linalg.qr(factors.left.astype(np.float64))
    P, S = np.linalg.qr(factors.right.T.astype(np.float64))
    U, values, V = np.linalg.svd(R @ S.T)
    rank = min(R.shape[0], S.shape[0])
    return Q @ U[:, :rank], values[:rank], V[:rank] @ P.T


def active_slots(ranks: Mapping[str, int], widths: Mapping[str, int]) -> dict[str, Slots]:
    """Return the masks of modules whose first slots are active, born at step 0, and no others."""
    slots = {}
    for path, width in widths.items():
        active = np.arange(width) < ranks[path]
        born = np.where(active, 0, np.iinfo(np.int32).max).astype(np.int32)
        resting = np.zeros(width, bool), np.zeros((), bool)
        slots[path] = Slots(*map(jnp.asarray, (active, *resting, born, born)))
    return slots

"""A few numbers that tell the kernels of one base model from those of another."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from increlora_jax.errors import InputError
from increlora_jax.nn.skeleton import Parts
from increlora_jax.quantization import as_dense

Fingerprint = dict[str, list[float]]
"""The projections of each kernel by path."""

FREQUENCIES = (1.0, 1.7, 2.3, 3.1)
TOLERANCE = 0.5
"""Of a projection, in units of the kernel's root mean square.

Four bits a weight, as of nf4, move a projection by 0.1 of these units, and bfloat16 by 0.002. Two
kernels that have nothing to do with each other are 1.4 apart (standard deviation).
"""


def take_fingerprint(parts: Parts) -> Fingerprint:
    """Compute some projections uᵀ·W·v of every adapted kernel W; waits for the device.

    u_i = cos(f·i) and v_j = cos(f·j) with the frequency f.

    A projection is multiplied by 2/√(rows·columns). It is then of the size of an entry of W.

    Args:
        parts: a model taken apart.

    Returns:
        The projections by the path of the kernel. Kernels that are shapes only, or whose values
        are on the devices of other processes, are left out.
    """
    kernels = {p: k for p in parts.adapters for k in (p, f"{p}.kernel") if k in parts.base}
    held = {kernel: parts.base[kernel] for kernel in kernels.values()}
    return {path: _project(as_dense(w)).tolist() for path, w in held.items() if _is_here(w)}


def check_fingerprint(file: Path, saved: Fingerprint, parts: Parts) -> None:
    """Check that an adapter is loaded over the base that it was trained over.

    Raises:
        InputError: a kernel of the base has other values; it is named.
    """
    here = take_fingerprint(parts) if saved else {}
    for path in sorted(here.keys() & saved.keys()):
        kernel = as_dense(parts.base[path]).astype(jnp.float32)
        tolerance = TOLERANCE * float(jnp.sqrt(jnp.mean(kernel**2)))
        if any(abs(a - b) > tolerance for a, b in zip(saved[path], here[path], strict=False)):
            raise InputError(
                f"{file}: the adapter was trained over another base: {path} has other values here. "
                "Load the base of its training"
            )


def _is_here(kernel: Array) -> bool:
    arrays = jax.tree.leaves(kernel)
    return all(
        isinstance(a, np.ndarray) or getattr(a, "is_fully_addressable", False) for a in arrays
    )


def _project(kernel: Float[Array, "..."]) -> np.ndarray:
    matrix = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
    rows, columns = (np.outer(FREQUENCIES, np.arange(size)) for size in matrix.shape)
    u, v = np.cos(rows).astype(np.float32), np.cos(columns).astype(np.float32)
    return np.asarray(jnp.einsum("fi,ij,fj->f", u, matrix, v)) * 2 / np.sqrt(matrix.size)

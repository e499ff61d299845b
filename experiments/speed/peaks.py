"""Peak speed of the machine: the datasheet's figure, and measured matrix products."""

import os
from collections.abc import Callable
from typing import Any

from work import Work

DATASHEET = {
    "NVIDIA H200": 989.4e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA A100": 311.9e12,
    "NVIDIA L40S": 362.1e12,
    "NVIDIA L4": 121.0e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}
"""Dense bfloat16 FLOP/s by the beginning of JAX's `device_kind`; the first match counts."""

SIZES = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
COUNTS = {"cpu": 1, "gpu": 16, "tpu": 16}
"""Number of square products in a turn, by platform; a single one would be too short."""


def datasheet_peak(kind: str, dtype: str) -> float | None:
    """Return the FLOP/s of a device's datasheet; None for CPUs, unlisted devices and float32.

    Makers state several figures for float32, and programs may reach either.
    """
    fitting = (peak for name, peak in DATASHEET.items() if kind.startswith(name))
    return next(fitting, None) if dtype == "bfloat16" else None


def flops_of_products(size: int, count: int) -> float:
    """Return the FLOPs of square products."""
    return 2.0 * size**3 * count


def run_jax_products(work: Work) -> Callable[[int], dict[str, Any]]:
    """Return a function that multiplies square matrices by XLA."""
    import jax
    import jax.numpy as jnp

    platform = jax.default_backend()
    size, repeats = SIZES[platform], COUNTS[platform]
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.dtype(work.dtype))
    multiply = jax.jit(jnp.matmul)

    def run(count: int) -> dict[str, Any]:
        for _ in range(count * repeats):
            product = multiply(a, b)
        jax.block_until_ready(product)
        return {"flops": flops_of_products(size, repeats)}  # of one step, as the seconds are

    return run


def run_torch_products(work: Work) -> Callable[[int], dict[str, Any]]:
    """Return a function that multiplies square matrices by PyTorch."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    platform = "gpu" if torch.cuda.is_available() else "cpu"
    size, repeats = SIZES[platform], COUNTS[platform]
    place = {"device": "cuda" if platform == "gpu" else "cpu", "dtype": getattr(torch, work.dtype)}
    a, b = torch.randn(2, size, size, **place)

    def run(count: int) -> dict[str, Any]:
        for _ in range(count * repeats):
            torch.matmul(a, b)
        if platform == "gpu":
            torch.cuda.synchronize()
        return {"flops": flops_of_products(size, repeats)}  # of one step, as the seconds are

    return run

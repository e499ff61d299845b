"""LoRA: every target keeps one fixed rank (arXiv 2106.09685)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.core.adapter import NEVER, Scaling
from increlora_jax.errors import InputError
from increlora_jax.methods import base
from increlora_jax.nn.attach import Targets, adapted_layers, attach, target_sizes
from increlora_jax.nn.layers import LowRankAdapter


def lora(
    model: nnx.Module,
    *,
    targets: Targets,
    exclude: Targets = (),
    adapter: AdapterConfig,
    growth: GrowthConfig,
    is_trained: Callable[[str], bool] = base.trains_nothing,
    dtype: Any = jnp.float32,
) -> base.Method:
    """y = x·W + (α/r) · x·A·B with A ~ U(±1/√in), B = 0 and r = `target_rank` slots, all active.

    It is IncreLoRA's layer with λ held at 1.
    """
    rank = int(growth.target_rank)
    if rank != growth.target_rank:
        raise InputError(f"--target-rank {growth.target_rank} must be whole for --method lora")
    sizes = target_sizes(model, targets, exclude)

    def attach_adapters(model: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        attach(
            model,
            targets,
            exclude=exclude,
            max_rank=rank,
            initial_rank=rank,
            scaling=Scaling(adapter.lora_alpha, "target", rank),
            dropout=adapter.lora_dropout,
            rngs=rngs,
            dtype=dtype,
        )
        for layer in adapted_layers(model).values():
            _start(layer.adapter, rngs.params())
        return model

    description = f"{len(sizes)} modules of rank {rank}"
    return base.fixed_method("lora", description, attach=attach_adapters, is_trained=is_trained)


def _start(adapter: LowRankAdapter, key: Array) -> None:
    """Draw A, and put B to 0 and λ to 1, for good."""
    bound, matrix = adapter.A.shape[0] ** -0.5, adapter.A[...]
    adapter.A[...] = jax.random.uniform(key, matrix.shape, matrix.dtype, -bound, bound)
    adapter.B[...] = jnp.zeros_like(adapter.B[...])
    adapter.lam[...] = jnp.ones_like(adapter.lam[...])
    adapter.lambda_born[...] = jnp.full_like(adapter.lambda_born[...], NEVER)

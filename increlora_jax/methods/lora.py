"""LoRA: every target keeps one fixed rank (arXiv 2106.09685)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.core.adapter import NEVER, Scaling
from increlora_jax.errors import InputError
from increlora_jax.methods import base
from increlora_jax.nn.attach import Targets, adapted_layers, attach, target_sizes


def lora(
    model: nnx.Module,
    *,
    targets: Targets,
    exclude: Targets = (),
    adapter: AdapterConfig,
    growth: GrowthConfig,
    is_trained: Any,
    dtype: Any = jnp.float32,
) -> base.Method:
    """y = x·W + (α/r) · x·A·B with A ~ U(±1/√in), B = 0 and r = `target_rank` slots, all active.

    It is IncreLoRA's layer with λ held at 1.
    """
    rank = int(growth.target_rank)
    if rank != growth.target_rank:
        raise InputError(f"--target-rank {growth.target_rank} must be whole for --method lora")
    modules = len(target_sizes(model, targets, exclude))

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
            own = layer.adapter
            bound = own.A.shape[0] ** -0.5
            own.A[...] = jax.random.uniform(rngs.params(), own.A.shape, dtype, -bound, bound)
            own.B[...] = jnp.zeros_like(own.B[...])
            own.lam[...] = jnp.ones_like(own.lam[...])
            own.lambda_born[...] = jnp.full_like(own.lambda_born[...], NEVER)
        return model

    return base.fixed_method(
        "lora",
        f"{modules} modules of rank {rank}",
        attach=attach_adapters,
        is_trained=is_trained,
    )

"""An adapter truncated to a total rank, by one threshold on the singular values of all modules."""

from typing import Any

import jax.numpy as jnp

from increlora_jax.core.adapter import Adapter, Scaling
from increlora_jax.interop.peft_model import widen
from increlora_jax.nn.factors import active_slots, count_energy, factors_of, shrink
from increlora_jax.nn.rules import make_rules
from increlora_jax.run.trained import Trained


def compact(trained: Trained, *, rank_budget: int | None, energy: float | None) -> Trained:
    """Truncate the updates of a model; the result is a LoRA whose modules differ in rank.

    Args:
        trained: The model.
        rank_budget: The total rank to keep; None: by energy.
        energy: The share of the sum of all squared singular values to keep.
    """
    factors = factors_of(trained.model.parts)
    keep = rank_budget if rank_budget is not None else count_energy(factors, energy or 1.0)
    small = shrink(factors, keep)
    ranks = {path: own.rank for path, own in small.items()}
    width = max(1, *ranks.values())
    alpha = float(trained.saved["lora_alpha"])
    scaling = Scaling(alpha, "target", width)
    parts = trained.model.parts._replace(
        adapters={path: _unscaled(widen(own, width), alpha / width) for path, own in small.items()},
        slots=active_slots(ranks, dict.fromkeys(ranks, width)),
        rules=make_rules(scaling, {}),
        scales=dict.fromkeys(ranks, jnp.float32(alpha / width)),
    )
    settings = trained.saved["settings"] | {"method": "lora", "target_rank": float(width),
                                            "scaling": "rank", "target_total_rank": None,
                                            "growth": True, "max_rank": "auto"}  # fmt: skip
    saved: dict[str, Any] = dict(trained.saved) | {
        "method": "lora", "scaling": "rank", "ranks": ranks, "settings": settings,
    }  # fmt: skip
    return trained._replace(saved=saved, model=trained.model._replace(parts=parts))


def _unscaled(adapter: Adapter, scale: float) -> Adapter:
    """Divide B by s, which the method multiplies it with."""
    return adapter._replace(B=adapter.B / jnp.float32(scale))

"""The learning rate of slots over a run, by their birth."""

from collections.abc import Mapping
from typing import Any

POINTS = 201
"""Points of a curve; one number of points, so that JAX compiles its operations once."""


def list_rates(settings: Mapping[str, Any], steps: int, born: int) -> list[tuple[float, float]]:
    """Return (step, learning rate) from the birth of a slot to the end of its run.

    The rate is lr · f(t − b; warmup, T − b), or lr · f(t; warmup, T) without restart warmup.

    Args:
        settings: the run's, resolved.
        steps: T, the steps of the run.
        born: b, the first step at which the slot may learn; 0 for the run's own rate.
    """
    import numpy as np

    from increlora_jax.core.schedule import SHAPES, rate_at

    at = np.linspace(born, max(steps - 1, born), POINTS).round().astype(np.int32)
    rates = rate_at(
        at,  # type: ignore[arg-type]
        np.int32(born),  # type: ignore[arg-type]
        learning_rate=settings["learning_rate"],
        warmup_steps=settings["warmup_steps"],
        total_steps=steps,
        restart_warmup=settings["restart_warmup"],
        shape=SHAPES[settings["lr_scheduler_type"]],
    )
    found = dict(zip(at.tolist(), np.asarray(rates).tolist(), strict=True))
    return list(found.items())

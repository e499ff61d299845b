"""The learning rate of slots over a run, by their birth."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

POINTS = 201
"""Points of a curve; the number is fixed, so that JAX compiles one program."""


def list_rates(settings: Mapping[str, Any], steps: int, born: int) -> list[tuple[float, float]]:
    """Return (step, learning rate) from the birth of a slot to the end of its run.

    The rate is lr · f(t − b; warmup, T − b), or lr · f(t; warmup, T) without restart warmup.

    Args:
        settings: the run's, resolved.
        steps: T, the steps of the run.
        born: b, the first step at which the slot may learn; 0 for the run's own rate.
    """
    import numpy as np

    at = np.linspace(born, max(steps - 1, born), POINTS).round().astype(np.int32)
    rates = _program(settings["lr_scheduler_type"], settings["restart_warmup"])(
        at, np.int32(born), settings["learning_rate"], settings["warmup_steps"], steps
    )
    return list(dict(zip(at.tolist(), np.asarray(rates).tolist(), strict=True)).items())


@cache
def _program(shape: str, restart_warmup: bool) -> Callable[..., Any]:
    """Return the compiled schedule: (steps, birth, learning rate, warmup, all steps) → rates."""
    import jax

    from increlora_jax.core.schedule import SHAPES, rate_at

    def rate(step: Any, born: Any, peak: Any, warmup: Any, total: Any) -> Any:
        return rate_at(
            step,
            born,
            learning_rate=peak,
            warmup_steps=warmup,
            total_steps=total,
            restart_warmup=restart_warmup,
            shape=SHAPES[shape],
        )

    return jax.jit(jax.vmap(rate, in_axes=(0, None, None, None, None)))

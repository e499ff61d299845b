"""Scored steps of a whole run by its own plan, and the same run in few steps."""

from dataclasses import replace

from work import Work

import increlora_jax as il
from increlora_jax.core.importance import lasting_steps
from increlora_jax.models.registry import abstract_model
from increlora_jax.training.loop import LAG


def scored_steps(work: Work, growth: il.GrowthConfig, steps: int, lag: int = LAG) -> list[bool]:
    """Return for every step whether the loop scores it, if the budget is spent as planned.

    The loop knows results `lag` steps late, so the method is asked with this delay.

    Args:
        work: The work.
        growth: The settings of growth.
        steps: Steps of the run.
        lag: Steps until results are known.
    """
    model = abstract_model(work.config, num_labels=2)
    method = il.increlora(
        model, steps=steps, targets=list(work.sizes), adapter=il.AdapterConfig(), growth=growth
    )
    last = work.plan(growth, steps).rounds[-1]

    def is_scored(step: int) -> bool:
        asked = range(max(0, step - lag), step + 1)
        return any(method.is_scored(at, last < step - lag) for at in asked)

    return [is_scored(step) for step in range(steps)]


def scored_share(work: Work, score_window: int | None = None) -> float:
    """Return the scored share of a run by the SST-2 recipe."""
    steps = scored_steps(work, work.growth(score_window=score_window), work.steps)
    return sum(steps) / len(steps)


def compress(work: Work) -> tuple[il.GrowthConfig, int]:
    """Return the recipe's growth and steps, divided by the steps scored before a round."""
    growth = work.growth()
    stride = lasting_steps(growth.beta1, growth.beta2) + LAG
    interval, warmup = growth.incre_interval // stride, growth.init_warmup // stride
    short = replace(growth, init_warmup=warmup, incre_interval=interval, score_window=1)
    return short, work.steps // stride

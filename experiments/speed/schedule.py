"""Which steps of a whole run are scored, by the run's own plan; and the same run in few steps."""

from dataclasses import replace
from math import ceil

from work import Work

import increlora_jax as il
from increlora_jax.models.registry import abstract_model


def scored_steps(work: Work, growth: il.GrowthConfig, steps: int) -> list[bool]:
    """Ask the method of every step whether it is scored, the budget being spent when planned."""
    model = abstract_model(work.config, num_labels=2)
    method = il.increlora(
        model, steps=steps, targets=list(work.sizes), adapter=il.AdapterConfig(), growth=growth
    )
    last = work.plan(growth, steps).rounds[-1]
    return [method.is_scored(step, step > last) for step in range(steps)]


def scored_share(work: Work, score_window: int | None = None) -> float:
    """How much of a run by the SST-2 recipe is scored, of 1."""
    steps = scored_steps(work, work.growth(score_window=score_window), work.steps)
    return sum(steps) / len(steps)


def compress(work: Work) -> tuple[il.GrowthConfig, int]:
    """The recipe's growth with a round at every step, and so many steps: the same shares."""
    growth = work.growth()
    interval = growth.incre_interval
    short = replace(growth, init_warmup=growth.init_warmup // interval, incre_interval=1)
    return short, ceil(work.steps / interval)

"""A package of somebody else, which tests write beside no package of ours and name by a flag."""

TOY = '''
"""A method that starts at rank 4, prunes to a budget, and lets one slot come back; and a score."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

import increlora_jax as il
from increlora_jax.core.pruning import prune as prune_slots
from increlora_jax.core.pruning import restore
from increlora_jax.core.stacking import flatten
from increlora_jax.methods.base import fixed_method, read_arguments
from increlora_jax.nn.any_model import attach, plan_targets

START = 4


@dataclass(frozen=True)
class PruneConfig:
    budget: int = 8
    every: int = 3
    returns: int = 9


def prune(model, *, steps, config: PruneConfig = PruneConfig(), **given):
    asked = read_arguments(**given)
    places = asked.places(model)
    names = tuple(plan_targets(model, **places).sizes)
    floor = config.budget // len(names)
    scaling = asked.adapter.scaling_rule(START)
    ranks = {"max_rank": START, "initial_rank": START, "scaling": scaling}

    def update(seen):
        """Prune the least sensitive slot of every module; a return is to the first module."""
        total = sum(own.rank.sum() for own in seen.slots.values())
        is_round = (seen.step > 0) & (seen.step % config.every == 0) & (total > config.budget)
        adapters, slots, state = {}, {}, {}
        for key, own in seen.slots.items():
            now = jnp.abs(seen.adapters[key].lam * seen.gradients[key].lam)
            state[key] = 0.9 * seen.state[key] + now
            worst = jnp.argmin(jnp.where(own.active, state[key], jnp.inf), axis=-1)
            leaves = jax.nn.one_hot(worst, START, dtype=bool) & own.active
            leaves &= is_round & (own.rank > floor)[..., None]
            adapters[key], left = prune_slots(seen.moved[key], own, leaves)
            is_first = jnp.array([name == names[0] for name in key])[:, None]
            gone = jax.nn.one_hot(jnp.argmin(left.active, axis=-1), START, dtype=bool)
            comes = gone & is_first & (seen.step == config.returns)
            slots[key] = restore(left, comes, seen.step)
        jax.debug.callback(die_at_ten, seen.step)
        info = {"rank": flatten({key: own.rank for key, own in slots.items()}, names)}
        return il.Updated(adapters, slots, state, info)

    fixed = fixed_method(
        "prune",
        f"{len(names)} modules pruned from rank {START} to a total of {config.budget}",
        attach=lambda model, rngs: attach(model, rngs=rngs, **places, **ranks),
        is_trained=places["is_trained"],
    )
    return fixed._replace(
        rank_budget=config.budget,
        init=lambda parts: {name: jnp.zeros_like(a.lam) for name, a in parts.adapters.items()},
        update=update,
        is_finished=lambda total_rank: total_rank <= config.budget,
    )


def die_at_ten(step):
    """Kill the process, once the checkpoint of step 8 is whole, if a test asks for it."""
    folder = os.environ.get("TOY_DIES_IN")
    if folder and step == 10:
        from increlora_jax.training.checkpoint import find_sound

        while getattr(find_sound(Path(folder)), "name", "") != "8":
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)


def count_inputs(gradient, update, key=None):
    return jnp.zeros_like(gradient).sum() + gradient.shape[0]


wide = il.ImportanceFunction(il.Evidence.DENSE, count_inputs, is_smoothed=False)
needs_key = wide._replace(score=lambda gradient, update, key: key)
NUMBER = 3


def returns_nothing(model, **given):
    return None


def takes_nothing():
    return None
'''

"""What the trainer knows of a method: a small record of functions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from increlora_jax.core.adapter import Adapter, Score, Slots
from increlora_jax.nn.parts import Parts

Adapters = dict[Any, Adapter]
"""By module, or by group of modules."""
SlotsOf = dict[Any, Slots]
Evidence = dict[Any, Array]
Info = dict[str, Array]
Settings = Mapping[str, Any]


class Updated(NamedTuple):
    """What a method hands back after a gradient."""

    adapters: Adapters
    slots: SlotsOf
    state: Any
    info: Info


class Method(NamedTuple):
    """A way of fine-tuning, as the trainer sees it.

    Beside `name`, `description` and the `rank_budget` (None where ranks do not grow):

    - `attach(model, rngs)` puts the method's parameters on a model; on an NNX module in place.
    - `is_trained(path)` labels the model's own parameters that learn in full.
    - `init(parts)` makes the state that `update` carries along.
    - `probes(adapters, is_summed)` makes the zeros whose cotangents are the evidence `update` wants
      of the task loss; `is_summed` when evidence of several micro-batches will be added up.
    - `score` turns a dense gradient into a scalar probe's cotangent.
    - `regularize(adapters, slots)` is what the method adds to the loss, before its coefficient
      `regularization`.
    - `update(step, key, adapters, slots, state, evidence)` acts after the gradient; `evidence` is
      None on steps that were not scored. What it gets and gives by module, as `regularize` too, are
      stacks of the modules of one shape (`core.groups`).
    - `is_scored(step, is_finished)` says, on the host, whether a step's evidence is wanted;
      `is_finished` once the ranks have reached the budget.
    - `restart_warmup`: whether what is born late has a warmup of its own, or joins the run's.
    - `vary(settings)` is the method with other values of those settings it knows (`config.vary`).
    """

    name: str
    description: str
    rank_budget: int | None
    attach: Callable[[Any, nnx.Rngs], Any]
    is_trained: Callable[[str], bool]
    init: Callable[[Parts], Any]
    probes: Callable[[Adapters, bool], Evidence]
    score: Score | None
    regularize: Callable[[Adapters, SlotsOf], Array]
    regularization: float
    update: Callable[[Array, Array, Adapters, SlotsOf, Any, Evidence | None], Updated]
    is_scored: Callable[[int, bool], bool]
    restart_warmup: bool
    vary: Callable[[Settings], "Method"]


def trains_nothing(path: str) -> bool:
    """The default label: none of the model's own parameters learn in full."""
    return False


def fixed_method(
    name: str,
    description: str,
    *,
    attach: Callable[[Any, nnx.Rngs], Any],
    is_trained: Callable[[str], bool],
) -> Method:
    """A method that never changes what it has attached: nothing to score, to add or to grow."""
    method = Method(
        name=name,
        description=description,
        rank_budget=None,
        attach=attach,
        is_trained=is_trained,
        init=lambda parts: (),
        probes=lambda adapters, is_summed: {},
        score=None,
        regularize=lambda adapters, slots: jnp.zeros(()),
        regularization=0.0,
        update=lambda step, key, adapters, slots, state, evidence: Updated(
            adapters, slots, state, {}
        ),
        is_scored=lambda step, is_finished: False,
        restart_warmup=False,
        vary=lambda settings: method,
    )
    return method

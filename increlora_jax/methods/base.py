"""The protocol of methods: a small record of functions."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypedDict, Unpack

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.core.adapter import Adapter, Score, Slots
from increlora_jax.core.schedule import Number
from increlora_jax.errors import InputError
from increlora_jax.nn.any_model import parameter_selector
from increlora_jax.nn.skeleton import Parts
from increlora_jax.nn.targets import (
    ALL_LINEAR,
    NO_PARAMETERS,
    Parameters,
    Targets,
    trains_nothing,
)

Adapters = dict[Any, Adapter]
"""By module, or by group of modules."""
SlotsOf = dict[Any, Slots]
Evidence = dict[Any, Array]
Info = dict[str, Array]
Settings = Mapping[str, Number]
"""The numbers of a run that are no shapes, by flag."""


class Observation(NamedTuple):
    """The result of one step, given to a method. By module, all arrays are stacks of one shape.

    Attributes:
      step: of the optimizer, from 0 [].
      key: for whatever the method draws.
      adapters: the parameters at which the gradients were taken.
      moved: the same parameters after the optimizer.
      slots: the masks and births of all slots.
      state: the method's own, as `init` made it or the last `update` returned it.
      gradients: ∂L/∂A, ∂L/∂λ, ∂L/∂B of the task loss, before the regularizer and before clipping.
      evidence: the cotangents of `probes`; None on a step that was not scored.
      settings: the numbers of this run, those of `Method.settings` among them.
    """

    step: Array
    key: Array
    adapters: Adapters
    moved: Adapters
    slots: SlotsOf
    state: Any
    gradients: Adapters
    evidence: Evidence | None
    settings: Settings = MappingProxyType({})


class Updated(NamedTuple):
    """The answer of a method to an `Observation`; `adapters` is `moved` with its changes."""

    adapters: Adapters
    slots: SlotsOf
    state: Any
    info: Info


class Method(NamedTuple):
    """A way of fine-tuning, as the trainer sees it.

    Beside `name`, `description` and the `rank_budget` (None where ranks do not change):

    - `attach(model, rngs)` puts the method's parameters on a model; on an NNX module in place.
    - `is_trained(path)` labels the model's own parameters that learn in full.
    - `init(parts)` makes the state that `update` carries along.
    - `probes(adapters, is_summed)` makes the zeros whose cotangents are the evidence `update` wants
      of the task loss; `is_summed` when evidence of several micro-batches will be added up.
    - `score` turns a dense gradient into a scalar probe's cotangent.
    - `regularize(adapters, slots)` is what the method adds to the loss, before its coefficient
      `regularization`.
    - `update(observation)` acts after the gradient and the optimizer: it may grow, prune or restore
      slots. All it gets and gives by module, as `regularize` too, are stacks of the modules of one
      shape (`core.stacking`). If ranks change, its `info` holds `rank`, in module order.
    - `is_finished(total_rank)` says, on the host, whether ranks have met their budget, from below
      or from above. It may become false again.
    - `is_scored(step, is_finished)` says, on the host, whether a step's evidence is wanted.
    - `restart_warmup`: whether what is born late has a warmup of its own, or joins the run's.
    - `settings`: the numbers that `update` reads, by flag, in `Observation.settings`. Each state
      has its own; a number that `update` closes over would be a constant of the program.
    - `steps`: of the run that growth was planned for; None if the method fits any run.
    - `chosen`: the values, by flag, of settings that follow the run's length and could be `auto`.
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
    update: Callable[[Observation], Updated]
    is_finished: Callable[[int], bool]
    is_scored: Callable[[int, bool], bool]
    restart_warmup: bool
    settings: Mapping[str, int | float] = MappingProxyType({})
    chosen: Mapping[str, Any] = MappingProxyType({})
    steps: int | None = None


class Arguments(TypedDict, total=False):
    """The arguments that every method takes beside the model and the steps, so that methods swap.

    - `targets`: the layers to adapt; default: `adapter.target_modules`, else all-linear.
    - `exclude`: the targets to leave out; default: `adapter.exclude_modules`.
    - `parameters`: how other parameters are matrices, by a regex for their path.
    - `adapter`: α, dropout and scaling.
    - `growth`: budget, rounds and importance.
    - `is_trained`: a test of paths; default: `adapter.modules_to_save`. Targets that learn in full
      are left out, and the description names them.
    - `dtype`: of the adapters; default float32.
    """

    targets: Targets | None
    exclude: Targets | None
    parameters: Parameters
    adapter: AdapterConfig
    growth: GrowthConfig
    is_trained: Callable[[str], bool] | None
    dtype: Any


class Asked(NamedTuple):
    """The arguments of a method, each with its default where it was not given."""

    targets: Targets | None = None
    exclude: Targets | None = None
    parameters: Parameters = NO_PARAMETERS
    adapter: AdapterConfig = AdapterConfig()
    growth: GrowthConfig = GrowthConfig()
    is_trained: Callable[[str], bool] | None = None
    dtype: Any = jnp.float32

    def places(self, model: Any) -> dict[str, Any]:
        """Return the arguments of `plan_targets` and `attach` that say where adapters go."""
        chosen = choose_places(model, self.targets, self.exclude, self.is_trained, self.adapter)
        return {**chosen._asdict(), "parameters": self.parameters}


def read_arguments(**given: Unpack[Arguments]) -> Asked:
    """Return the arguments of a method with their defaults.

    Raises:
        TypeError: an argument that no method has.
    """
    return Asked(**given)


class Chosen(NamedTuple):
    """The places of a model that a method adapts, leaves out and trains in full."""

    targets: Targets
    exclude: Targets
    is_trained: Callable[[str], bool]


def choose_places(
    model: Any,
    targets: Targets | None,
    exclude: Targets | None,
    is_trained: Callable[[str], bool] | None,
    adapter: AdapterConfig,
) -> Chosen:
    """Return each argument that is given, else what the configuration names, else the default.

    Raises:
        InputError: a place that argument and configuration name differently, or no such module.
    """
    saved = adapter.modules_to_save
    if is_trained is not None and saved:
        raise InputError(
            f"is_trained and modules_to_save={saved} both say what is trained in full. Give one"
        )
    if saved:
        is_trained = parameter_selector(model, saved)
    return Chosen(
        _choose("targets", targets, "target_modules", adapter) or ALL_LINEAR,
        _choose("exclude", exclude, "exclude_modules", adapter) or (),
        is_trained or trains_nothing,
    )


def _choose(name: str, given: Targets | None, field: str, adapter: AdapterConfig) -> Targets | None:
    configured = as_targets(getattr(adapter, field))
    if given is not None and configured is not None and given != configured:
        raise InputError(f"{name}={given!r} and {field}={configured!r} differ. Give one")
    return configured if given is None else given


def as_targets(words: list[str] | None) -> Targets | None:
    """Read a flag's words: a single one that is no plain name is a regex for the whole path."""
    if words is None or len(words) > 1:
        return words
    is_name = re.fullmatch(r"[\w.]+", words[0]) and words[0] != ALL_LINEAR
    return words if is_name else words[0]


def fixed_method(
    name: str,
    description: str,
    *,
    attach: Callable[[Any, nnx.Rngs], Any],
    is_trained: Callable[[str], bool],
) -> Method:
    """A method that never changes what it has attached: nothing to score, to add or to grow."""
    return Method(
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
        update=lambda seen: Updated(seen.moved, seen.slots, seen.state, {}),
        is_finished=lambda total_rank: True,
        is_scored=lambda step, is_finished: False,
        restart_warmup=False,
    )

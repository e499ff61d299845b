"""The protocol of methods: a small record of functions."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypedDict, Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.core.adapter import Adapter, Slots
from increlora_jax.core.probe import Probe
from increlora_jax.core.schedule import Number
from increlora_jax.core.stacking import Group
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

Adapters = dict[Group, Adapter]
SlotsOf = dict[Group, Slots]
Probes = dict[Group, Probe]
Info = dict[str, Array]
Settings = Mapping[str, Number]
"""The numbers of a run that are no shapes, by flag."""


class Observation(NamedTuple):
    """The result of one step, which a method updates from.

    Arrays by module are stacks of the modules of one shape (`core.stacking`).

    Attributes:
        step: of the optimizer, from 0 [].
        key: for the method's random numbers [].
        adapters: the parameters at which the gradients were taken.
        moved: the same parameters after the optimizer.
        slots: the masks and births of all slots.
        state: the method's own, from `init` or the last `update`.
        gradients: ∂L/∂A, ∂L/∂λ, ∂L/∂B of the task loss, before the regularizer and before clipping.
        evidence: the gradients of `probes`, of the same types; None on a step that was not scored.
        settings: the numbers of this run by flag, each []; default: none.

    >>> import increlora_jax as il, jax, jax.numpy as jnp
    >>> def update(seen: il.Observation) -> il.Updated:
    ...     return il.Updated(seen.moved, seen.slots, seen.state, {"rate": seen.settings["rate"]})
    >>> params = {"w": jnp.ones((4, 4))}
    >>> method = il.lora(params)._replace(update=update, settings={"rate": 0.5})
    >>> trainer, state, base = il.prepare(params, method, total_steps=10)
    >>> differentiate = trainer.value_and_grad(lambda model, x: jnp.sum(x @ model["w"]))
    >>> _, gradients = jax.eval_shape(differentiate, state, base, jnp.ones((2, 4)))
    >>> jax.eval_shape(trainer.update, state, gradients)[1]["rate"].shape
    ()
    """

    step: Array
    key: Array
    adapters: Adapters
    moved: Adapters
    slots: SlotsOf
    state: PyTree
    gradients: Adapters
    evidence: Probes | None
    settings: Settings = MappingProxyType({})


class Updated(NamedTuple):
    """The answer of a method to an `Observation`.

    Attributes:
        adapters: `Observation.moved` with the method's changes.
        slots: the slots for the next step.
        state: the method's own state for the next step.
        info: arrays for the step's info. If ranks change, `rank` [modules] is in module order.

    >>> import increlora_jax as il
    >>> il.Updated({}, {}, (), {}).info
    {}
    """

    adapters: Adapters
    slots: SlotsOf
    state: PyTree
    info: Info


class Method(NamedTuple):
    """A way of fine-tuning, as the trainer sees it.

    `regularize` and `update` take and return stacks of the modules of one shape (`core.stacking`).

    Attributes:
        name: of the method, as `--method` takes it.
        description: one line for the user.
        rank_budget: the total rank at the end; None if ranks do not change.
        attach: (model, rngs) → the model with the method's parameters; an NNX module in place.
        is_trained: path → whether a parameter of the model's own learns in full.
        init: parts → the method's state before step 0.
        probes: (adapters, is_summed) → probes (`core.probe`) whose gradients are the evidence for
            `update`. `is_summed` says that the evidence of several micro-batches is added up.
        regularize: (adapters, slots) → the term that is added to the loss [].
        regularization: the coefficient of that term.
        update: observation → changes after the gradient and the optimizer. A method may grow, prune
            or restore slots.
        is_finished: total rank → whether ranks have met their budget, from below or from above.
            The host asks after every step. The answer may become false again.
        is_scored: (step, is_finished) → whether a step needs evidence; asked on the host.
        restart_warmup: whether late parameters have a warmup of their own, or share the run's.
        settings: the numbers that `update` reads in `Observation.settings`, by flag. A number that
            `update` closes over is a constant of the program. Default: none.
        chosen: values of settings that could be `auto`, by flag; default: none.
        steps: of the run that growth was planned for; default None: the method fits any run.

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> growth = il.GrowthConfig(top_h=1, init_warmup=10, incre_interval=10)
    >>> method = il.increlora({"w": jnp.ones((4, 4))}, steps=100, growth=growth)
    >>> method.name, method.rank_budget, method.is_finished(1), method.is_scored(20, False)
    ('increlora', 2, False, True)
    """

    name: str
    description: str
    rank_budget: int | None
    attach: Callable[[PyTree, nnx.Rngs], PyTree]
    is_trained: Callable[[str], bool]
    init: Callable[[Parts], PyTree]
    probes: Callable[[Adapters, bool], Probes]
    regularize: Callable[[Adapters, SlotsOf], Array]
    regularization: float
    update: Callable[[Observation], Updated]
    is_finished: Callable[[int], bool]
    is_scored: Callable[[int, bool], bool]
    restart_warmup: bool
    settings: Mapping[str, int | float] = MappingProxyType({})
    chosen: Mapping[str, int | float] = MappingProxyType({})
    steps: int | None = None


class Arguments(TypedDict, total=False):
    """The arguments that every method takes beside the model and the steps, so that methods swap.

    Attributes:
        targets: the layers to adapt. Default: `adapter.target_modules`, or every linear layer.
        exclude: the targets to leave out. Default: `adapter.exclude_modules`.
        parameters: other parameters as matrices, by a regex for their path. Default: none.
        adapter: α, dropout and scaling. Default: `AdapterConfig()`.
        growth: budget, rounds and importance. Default: `GrowthConfig()`.
        is_trained: path → whether a parameter learns in full. Targets that learn in full are left
            out, and the description names them. Default: `adapter.modules_to_save`.
        dtype: of the adapters. Default: float32.
        initial_ranks: ranks of the modules that begin with a trained update. Default: none.
    """

    targets: Targets | None
    exclude: Targets | None
    parameters: Parameters
    adapter: AdapterConfig
    growth: GrowthConfig
    is_trained: Callable[[str], bool] | None
    dtype: DTypeLike
    initial_ranks: Mapping[str, int]


class Asked(NamedTuple):
    """The arguments of a method, with the defaults of the missing ones."""

    targets: Targets | None = None
    exclude: Targets | None = None
    parameters: Parameters = NO_PARAMETERS
    adapter: AdapterConfig = AdapterConfig()
    growth: GrowthConfig = GrowthConfig()
    is_trained: Callable[[str], bool] | None = None
    dtype: DTypeLike = jnp.float32
    initial_ranks: Mapping[str, int] = MappingProxyType({})

    def places(self, model: PyTree) -> dict[str, Any]:
        """Return the arguments of `plan_targets` and `attach` that name the places of adapters."""
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
    model: PyTree,
    targets: Targets | None,
    exclude: Targets | None,
    is_trained: Callable[[str], bool] | None,
    adapter: AdapterConfig,
) -> Chosen:
    """Return the places by the arguments, or by the configuration, or the default places.

    Args:
        model: the model, which may be abstract.
        targets: the layers to adapt; None for those of `adapter`.
        exclude: the targets to leave out; None for those of `adapter`.
        is_trained: path → whether a parameter learns in full; None for `adapter.modules_to_save`.
        adapter: the configuration.

    Raises:
        InputError: argument and configuration differ, or there is no such module.
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
    """Return the targets of a flag's words. A single word that is no name is a regex for paths."""
    if words is None or len(words) > 1:
        return words
    is_name = re.fullmatch(r"[\w.]+", words[0]) and words[0] != ALL_LINEAR
    return words if is_name else words[0]


def fixed_method(
    name: str,
    description: str,
    *,
    attach: Callable[[PyTree, nnx.Rngs], PyTree],
    is_trained: Callable[[str], bool],
) -> Method:
    """Return a method that never changes its adapters: no score, no regularizer, no growth.

    Args:
        name: of the method.
        description: one line for the user.
        attach: (model, rngs) → the adapted model.
        is_trained: path → whether a parameter of the model's own learns in full.
    """
    return Method(
        name=name,
        description=description,
        rank_budget=None,
        attach=attach,
        is_trained=is_trained,
        init=lambda parts: (),
        probes=lambda adapters, is_summed: {},
        regularize=lambda adapters, slots: jnp.zeros(()),
        regularization=0.0,
        update=lambda seen: Updated(seen.moved, seen.slots, seen.state, {}),
        is_finished=lambda total_rank: True,
        is_scored=lambda step, is_finished: False,
        restart_warmup=False,
    )

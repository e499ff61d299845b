"""Common parts of methods whose slots change their module in rounds, under one total rank."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from increlora_jax.config import AdapterConfig, GrowthConfig, PruningConfig
from increlora_jax.core.adapter import RANK_EPSILON, Adapter, Scaling, Slots
from increlora_jax.core.exchange import Exchange, falling_count, open_slots
from increlora_jax.core.plan import buffer_width
from increlora_jax.core.pruning import prune
from increlora_jax.core.regularizer import mean_orthogonality
from increlora_jax.core.stacking import Group, flatten, unflatten
from increlora_jax.errors import InputError
from increlora_jax.methods import base
from increlora_jax.nn.any_model import attach, plan_targets
from increlora_jax.nn.kernels import path_of
from increlora_jax.nn.skeleton import Parts

TINIT, TFINAL, DELTA_T = 0.1, 0.4, 0.02
"""Shares of a run that `auto` takes."""


class Rule(NamedTuple):
    """The part of a method that is its own.

    Attributes:
        name: of the method.
        depth: slots that a module gains in a round at most.
        init: parts → the state before step 0.
        measure: observation → the state after the step.
        choose: (state, adapters, slots, paths, settings, number) → the slots that leave, and the
            modules that gain one, in the order of the paths.
        draw: (key, adapter, slots that stay) → the values of opened slots.
        clear: (state, opened slots by group) → the state of slots that begin anew.
    """

    name: str
    depth: int
    init: Callable[[Parts], PyTree]
    measure: Callable[[base.Observation], PyTree]
    choose: Callable[..., Exchange]
    draw: Callable[[Array, Adapter, Bool[Array, "..."]], Adapter]
    clear: Callable[[PyTree, dict[Group, Array]], PyTree]


def swapping_method(
    rule: Rule, model: PyTree, steps: int, config: PruningConfig, asked: base.Asked
) -> base.Method:
    """Return a method whose slots change their module.

    Args:
        rule: the method's own part.
        model: the model, which may be abstract.
        steps: optimizer steps of the run.
        config: the settings of rounds.
        asked: targets and settings.

    Raises:
        InputError: targets that match nothing, or rounds that do not fit; named.
    """
    if asked.initial_ranks:
        raise InputError(f"--init-adapter is not for --method {rule.name}. Choose increlora")
    places = asked.places(model)
    planned = plan_targets(model, **places)
    plan = _plan(rule, planned.sizes, steps, config, asked)
    rounds = _Rounds(rule, asked, plan, tuple(dict.fromkeys(map(path_of, planned.sizes))))
    settings = places | rounds.adapter_settings()
    return base.fixed_method(
        rule.name,
        plan.describe() + planned.describe(),
        attach=lambda model, rngs: attach(model, rngs=rngs, **settings),
        is_trained=places["is_trained"],
    )._replace(
        rank_budget=plan.modules * plan.rank,
        init=rule.init,
        regularize=mean_orthogonality,
        regularization=asked.growth.reg_orth_coef,
        update=rounds.update,
        settings=rounds.settings,
        chosen=plan.chosen,
        steps=steps,
    )


class _Plan(NamedTuple):
    """The rounds of one run."""

    modules: int
    rank: int
    width: int
    tinit: int
    tfinal: int
    delta_t: int
    steps: int
    config: PruningConfig

    @property
    def chosen(self) -> dict[str, int]:
        """The values of the settings that may be `auto`, by flag."""
        return {name: getattr(self, name) for name in ("tinit", "tfinal", "delta_t")}

    def describe(self) -> str:
        """Return the rounds in one line."""
        many = "module" if self.modules == 1 else "modules"
        return (
            f"{self.modules} {many} of rank {self.rank}, buffers of {self.width} slots; up to "
            f"{self.config.swap_ranks} slots change their module every {self.delta_t} steps "
            f"between steps {self.tinit} and {self.steps - self.tfinal}"
        )


def _plan(
    rule: Rule,
    sizes: dict[str, tuple[int, int]],
    steps: int,
    config: PruningConfig,
    asked: base.Asked,
) -> _Plan:
    rank = int(asked.growth.target_rank)
    if rank != asked.growth.target_rank:
        raise InputError(
            f"--target-rank {asked.growth.target_rank} must be whole for --method {rule.name}. "
            "Round it"
        )

    def choose(value: int | str, share: float) -> int:
        return value if isinstance(value, int) else round(share * steps)

    tinit, tfinal = choose(config.tinit, TINIT), choose(config.tfinal, TFINAL)
    delta_t = max(1, choose(config.delta_t, DELTA_T))
    if tinit + tfinal >= steps:
        raise InputError(
            f"--tinit {tinit} and --tfinal {tfinal} leave none of {steps} steps to prune in. "
            "Lower them"
        )
    if tinit + delta_t >= steps - tfinal:
        raise InputError(
            f"--delta-t {delta_t}: no round is between steps {tinit} and {steps - tfinal}. Lower it"
        )
    most = min(rank + (steps - tinit - tfinal) // delta_t * rule.depth, rank * len(sizes))
    width = _choose_width(sizes, rank, most, asked.growth)
    return _Plan(len(sizes), rank, width, tinit, tfinal, delta_t, steps, config)


def _choose_width(
    sizes: dict[str, tuple[int, int]], rank: int, most: int, growth: GrowthConfig
) -> int:
    """Return the slots of every buffer; one number, so that slots of all modules compare."""
    width = buffer_width(most, rank, growth.max_rank_rule)
    name, smallest = min(((n, min(size)) for n, size in sizes.items()), key=lambda one: one[1])
    is_given = isinstance(growth.max_rank_rule, int)
    if rank > smallest or (is_given and width > smallest):
        flag = f"--target-rank {rank}" if rank > smallest else f"--max-rank {width}"
        raise InputError(f"{flag} exceeds the kernel of {name}. Lower it, or --exclude-modules")
    if width < rank:
        raise InputError(f"--max-rank {width} is below --target-rank {rank}. Raise it")
    return min(width, smallest)


class _Rounds(NamedTuple):
    """The rounds of a run, bound to one plan."""

    rule: Rule
    asked: base.Asked
    plan: _Plan
    paths: tuple[str, ...]  # of the adapters, in module order; a stack is one path

    @property
    def settings(self) -> dict[str, int | float]:
        """The numbers of the rounds, by flag."""
        growth, config = self.asked.growth, self.plan.config
        return {
            **self.plan.chosen,
            "swap_ranks": config.swap_ranks,
            "swap_depth": config.swap_depth,
            "beta1": float(growth.beta1),
            "beta2": float(growth.beta2),
        }

    def adapter_settings(self) -> dict[str, Any]:
        """Return the settings of adapters that `attach` takes."""
        adapter = self.asked.adapter
        return {
            "max_rank": self.plan.width,
            "initial_rank": self.plan.rank,
            "scaling": _scaling(adapter, self.plan.rank),
            "dropout": adapter.lora_dropout,
            "dtype": self.asked.dtype,
        }

    def update(self, seen: base.Observation) -> base.Updated:
        """Measure; in a round, let slots change their module."""
        step, settings = seen.step, seen.settings
        state, end = self.rule.measure(seen), settings["total_steps"] - settings["tfinal"]
        start = settings["tinit"]
        number = falling_count(step, first=settings["swap_ranks"], start=start, end=end)
        is_due = (step > start) & ((step - start) % settings["delta_t"] == 0) & (step < end)
        adapters, slots, state = jax.lax.cond(
            is_due & (number > 0),
            lambda state: self._swap(seen, state, number),
            lambda state: (seen.moved, seen.slots, state),
            state,
        )
        ranks = flatten({key: own.rank for key, own in slots.items()}, self.paths)
        return base.Updated(adapters, slots, state, {"rank": ranks})

    def _swap(
        self, seen: base.Observation, state: PyTree, number: Int[Array, ""]
    ) -> tuple[base.Adapters, base.SlotsOf, PyTree]:
        """Return adapters, slots and state after a round."""
        given = state, seen.moved, seen.slots, self.paths, seen.settings
        like = {key: own.is_advancing for key, own in seen.slots.items()}
        pruned, granted = (unflatten(x, like, self.paths) for x in self.rule.choose(*given, number))
        adapters, slots, opened = {}, {}, {}
        for index, (key, before) in enumerate(seen.slots.items()):
            own = jax.random.fold_in(seen.key, index)
            fresh = self.rule.draw(own, seen.moved[key], before.active & ~pruned[key])
            after = open_slots(seen.moved[key], before, granted[key], seen.step, fresh)
            adapters[key], slots[key] = prune(*after, pruned[key])
            opened[key] = slots[key].active & ~before.active
            if not self.plan.config.keep_moments:
                slots[key] = _begin_again(slots[key], seen.step)
        return adapters, slots, self.rule.clear(state, opened)


def _scaling(adapter: AdapterConfig, rank: int) -> Scaling:
    """Return a rule for s that no change of a module's rank changes, so that ΔW stays."""
    over = rank**0.5 if adapter.scaling == "rsqrt" else rank
    return Scaling(adapter.lora_alpha, "target", over + RANK_EPSILON)


def _begin_again(slots: Slots, step: Int[Array, ""]) -> Slots:
    """Let every active slot be born at the next step, with new moments."""
    born = (slots.lambda_born, slots.matrix_born)
    moved = (jnp.where(slots.active, step + 1, own) for own in born)
    return slots._replace(**dict(zip(("lambda_born", "matrix_born"), moved, strict=True)))

"""AdaLoRA: ranks shrink from above, slot by slot, to one exact budget (arXiv 2303.10512)."""

from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from increlora_jax.config import PruningConfig
from increlora_jax.core.adapter import RANK_EPSILON, Adapter, Scaling, Slots
from increlora_jax.core.regularizer import mean_orthogonality
from increlora_jax.core.schedule import Number
from increlora_jax.core.stacking import Group, flatten, unflatten
from increlora_jax.core.triplets import (
    EntryAverages,
    cubic_budget,
    init_averages,
    keep_highest,
    score_slots,
)
from increlora_jax.errors import InputError
from increlora_jax.methods import base
from increlora_jax.methods.sensitivity import move_averages
from increlora_jax.nn.any_model import attach, plan_targets
from increlora_jax.nn.kernels import path_of
from increlora_jax.nn.skeleton import Parts

TINIT, TFINAL, DELTA_T = 0.1, 0.4, 0.002
"""Shares of a run that `auto` takes, about those of the published runs on SST-2 and MNLI."""

WIDTH = 1.5
"""First rank over the last mean rank that `auto` takes, as 12 for 8."""


def adalora(
    model: PyTree,
    *,
    steps: int,
    config: PruningConfig = PruningConfig(),
    **given: Unpack[base.Arguments],
) -> base.Method:
    """Return AdaLoRA for a model, with its schedule over the steps of the run.

    Every `delta_t` steps after `tinit`, the slots of lowest importance over a budget that falls by
    a cubic lose their λ. They learn on and may come back, until the last `tfinal` steps.

    Deviations from PEFT: gradients are those before clipping, and ties leave exactly the budget.

    Args:
        model: an NNX module, which may be abstract, a `LinenModel` or a pytree of parameters.
        steps: optimizer steps of the run.
        config: the first rank and the schedule; default: as `auto` chooses.
        **given: targets and settings; see `methods.base.Arguments`. Of `growth`, the target rank,
            the decays and the orthogonality's weight are used.

    Returns:
        The method; nothing is attached yet.

    Raises:
        InputError: targets that match nothing, or a schedule that does not fit; named.

    >>> import increlora_jax as il
    >>> method = il.adalora({"w": jnp.ones((4, 4))}, steps=100)
    >>> method.rank_budget, method.description
    (2, '1 module of rank 3, total rank 3 → 2 between steps 10 and 60')
    """
    asked = base.read_arguments(**given)
    if asked.initial_ranks:
        raise InputError("--init-adapter is not for --method adalora. Choose increlora or lora")
    places = asked.places(model)
    planned = plan_targets(model, **places)
    plan = _plan(planned.sizes, steps, config, asked)
    rules = _Pruning(asked, plan, tuple(dict.fromkeys(map(path_of, planned.sizes))))
    return _method(rules, places, plan.describe() + planned.describe())


def _method(rules: "_Pruning", places: dict[str, Any], description: str) -> base.Method:
    settings, plan = places | rules.adapter_settings(), rules.plan
    return base.fixed_method(
        "adalora",
        description,
        attach=lambda model, rngs: attach(model, rngs=rngs, **settings),
        is_trained=places["is_trained"],
    )._replace(
        rank_budget=plan.budget,
        init=rules.init,
        regularize=mean_orthogonality,
        regularization=rules.asked.growth.reg_orth_coef,
        update=rules.update,
        is_finished=lambda total_rank: total_rank <= plan.budget,
        settings=rules.settings,
        chosen=plan.chosen,
        steps=plan.steps,
    )


class _Plan(NamedTuple):
    """The schedule of one run."""

    modules: int
    budget: int
    init_r: int
    tinit: int
    tfinal: int
    delta_t: int
    steps: int

    @property
    def chosen(self) -> dict[str, int]:
        """The values of the settings that may be `auto`, by flag."""
        return {name: getattr(self, name) for name in ("init_r", "tinit", "tfinal", "delta_t")}

    def describe(self) -> str:
        """Return the schedule in one line."""
        many = "module" if self.modules == 1 else "modules"
        return (
            f"{self.modules} {many} of rank {self.init_r}, total rank {self.modules * self.init_r} "
            f"→ {self.budget} between steps {self.tinit} and {self.steps - self.tfinal}"
        )


def _plan(
    sizes: dict[str, tuple[int, int]], steps: int, config: PruningConfig, asked: base.Asked
) -> _Plan:
    """Choose the numbers that are `auto`; check that all fit together."""
    target = asked.growth.target_rank
    budget = asked.growth.target_total_rank or round(target * len(sizes))

    def choose(value: int | str, automatic: float) -> int:
        return value if isinstance(value, int) else round(automatic)

    init_r = choose(config.init_r, max(target + 1, WIDTH * target))
    tinit, tfinal = choose(config.tinit, TINIT * steps), choose(config.tfinal, TFINAL * steps)
    delta_t = max(1, choose(config.delta_t, DELTA_T * steps))
    narrow = [name for name, size in sizes.items() if init_r > min(size)]
    if narrow:
        raise InputError(
            f"--init-r {init_r} exceeds the kernel of {narrow[0]}. Lower it, or --exclude-modules"
        )
    if init_r * len(sizes) < budget:
        raise InputError(
            f"--init-r {init_r}: {len(sizes)} modules have {init_r * len(sizes)} slots, fewer than "
            f"the budget of {budget}. Raise it, or lower --target-rank"
        )
    if tinit + tfinal >= steps:
        raise InputError(
            f"--tinit {tinit} and --tfinal {tfinal} leave none of {steps} steps to prune in. "
            "Lower them"
        )
    return _Plan(len(sizes), budget, init_r, tinit, tfinal, delta_t, steps)


class _Pruning(NamedTuple):
    """The rules of pruning, bound to one plan."""

    asked: base.Asked
    plan: _Plan
    paths: tuple[str, ...]  # of the adapters, in module order; a stack is one path

    @property
    def settings(self) -> dict[str, int | float]:
        """The numbers of the schedule, by flag."""
        plan, growth = self.plan, self.asked.growth
        return {
            "tinit": plan.tinit,
            "tfinal": plan.tfinal,
            "delta_t": plan.delta_t,
            "initial_budget": plan.modules * plan.init_r,
            "rank_budget": plan.budget,
            "beta1": float(growth.beta1),
            "beta2": float(growth.beta2),
        }

    def adapter_settings(self) -> dict[str, Any]:
        """Return the settings of adapters that `attach` takes."""
        adapter, width = self.asked.adapter, self.plan.init_r
        return {
            "max_rank": width,
            "initial_rank": width,
            "scaling": Scaling(adapter.lora_alpha, "target", width + RANK_EPSILON),
            "dropout": adapter.lora_dropout,
            "dtype": self.asked.dtype,
        }

    def init(self, parts: Parts) -> dict[str, EntryAverages]:
        return {path: init_averages(own) for path, own in parts.adapters.items()}

    def update(self, seen: base.Observation) -> base.Updated:
        """Move the averages; at the due steps, choose the slots that keep their λ."""
        step, settings = seen.step, seen.settings
        end = settings["total_steps"] - settings["tfinal"]
        state = move_averages(seen, moves=step < end)
        is_due = (step > settings["tinit"]) & (step % settings["delta_t"] == 0) & (step < end)
        is_due, is_final = is_due | (step == end), step >= end
        kept = self._choose(seen, state, end)
        adapters, slots = dict(seen.moved), dict(seen.slots)
        for key, own in seen.slots.items():
            keeps = jnp.where(is_due, kept[key], ~own.reserve)
            adapters[key], slots[key] = _mask(
                adapters[key], own, keeps, zeroes=is_due | is_final, is_final=is_final
            )
        ranks = flatten({key: own.rank for key, own in slots.items()}, self.paths)
        return base.Updated(adapters, slots, state, {"rank": ranks})

    def _choose(
        self, seen: base.Observation, state: dict[Group, EntryAverages], end: Number
    ) -> dict[Group, Array]:
        """Return the slots of the highest importance within the budget of the step."""
        settings = seen.settings
        budget = cubic_budget(
            seen.step,
            initial=settings["initial_budget"],
            final=settings["rank_budget"],
            start=settings["tinit"],
            end=end,
        )
        scores = {key: score_slots(averages) for key, averages in state.items()}
        kept = keep_highest(flatten(scores, self.paths, trailing=1), budget)
        return unflatten(kept, {k: own.is_advancing for k, own in seen.slots.items()}, self.paths)


def _mask(
    adapter: Adapter,
    slots: Slots,
    kept: Bool[Array, "*stack slots"],
    *,
    zeroes: Bool[Array, ""],
    is_final: Bool[Array, ""],
) -> tuple[Adapter, Slots]:
    """Count the kept slots alone; zero the λ of the others, which learn on until the end.

    A slot that is not kept stays in the regularizer, as in PEFT.
    """
    lam = jnp.where(zeroes & ~kept, 0.0, adapter.lam)
    return adapter._replace(lam=lam), slots._replace(active=kept | ~is_final, reserve=~kept)

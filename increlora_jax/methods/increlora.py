"""IncreLoRA: ranks grow where importance says so, under one exact budget (paper §3)."""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from increlora_jax.config import LARGEST, AdapterConfig, GrowthConfig
from increlora_jax.core.adapter import Adapter, Slots, effective_update, over_stack
from increlora_jax.core.allocator import allocate, grow, is_near_round, is_round, open_reserve
from increlora_jax.core.importance import (
    IMPORTANCE_FUNCTIONS,
    Evidence,
    ImportanceFunction,
    ImportanceState,
    find_misfit,
    init_importance,
    lasting_steps,
    short_window,
    update_importance,
)
from increlora_jax.core.plan import GrowthPlan, plan_growth
from increlora_jax.core.probe import DenseProbe, Probe, ScoreProbe, SlotProbe
from increlora_jax.core.pruning import choose_losses, find_weakest, prune
from increlora_jax.core.regularizer import mean_orthogonality
from increlora_jax.core.schedule import Number
from increlora_jax.core.stacking import Group, flatten, unflatten
from increlora_jax.errors import InputError
from increlora_jax.methods import base
from increlora_jax.methods.code import load_code
from increlora_jax.nn.any_model import attach, plan_targets
from increlora_jax.nn.initial import INIT_STD
from increlora_jax.nn.kernels import path_of
from increlora_jax.nn.skeleton import Parts


def increlora(
    model: PyTree,
    *,
    steps: int,
    importance: ImportanceFunction | None = None,
    **given: Unpack[base.Arguments],
) -> base.Method:
    """Return IncreLoRA for a model, with its growth planned over the steps of the run.

    Args:
        model: an NNX module, which may be abstract, a `LinenModel` or a pytree of parameters.
        steps: optimizer steps of the run.
        importance: a score of the user's own; default: the score that `growth.importance` names.
        **given: targets and settings; see `methods.base.Arguments`.

    Returns:
        The method; nothing is attached yet.

    Raises:
        InputError: targets that match nothing, or a plan that cannot finish; named.

    >>> import increlora_jax as il
    >>> growth = il.GrowthConfig(top_h=1, init_warmup=10, incre_interval=10)
    >>> il.increlora({"w": jnp.ones((4, 4))}, steps=100, growth=growth).rank_budget
    2
    """
    asked = base.read_arguments(**given)
    function = choose_importance(importance, asked.growth.importance)
    places = asked.places(model)
    planned = plan_targets(model, **places)
    plan = _plan(planned.sizes, steps, asked.growth, asked.initial_ranks)
    _check_prunings(plan, asked.growth.prune_interval)
    rules = _Growth(asked.growth, plan, asked.adapter, planned.describe(), function)
    settings = {**places, **rules.adapter_settings(), "dtype": asked.dtype}
    return _method(rules, lambda m, rngs: attach(m, rngs=rngs, **settings), places["is_trained"])


def choose_importance(given: ImportanceFunction | None, name: str) -> ImportanceFunction:
    """Return the given score, or the named one. A name `package.module:name` is imported.

    Raises:
        InputError: there is no such score, or it is no `ImportanceFunction` that can be called.
    """
    where = "importance" if given else f"--importance {name}"
    function: Any = given or IMPORTANCE_FUNCTIONS.get(name)
    if ":" in name and not given:
        function = load_code("--importance", name)
    if not isinstance(function, ImportanceFunction):
        raise InputError(
            f"{where}: no ImportanceFunction. Name one as package.module:name, or choose from "
            f"{', '.join(IMPORTANCE_FUNCTIONS)}"
        )
    if problem := find_misfit(function):
        raise InputError(f"{where}: {problem}")
    return function


def _method(
    rules: "_Growth", attach: Callable[..., Any], is_trained: Callable[[str], bool]
) -> base.Method:
    return base.Method(
        name="increlora",
        description=rules.plan.describe() + rules.note,
        rank_budget=rules.plan.budget,
        attach=attach,
        is_trained=is_trained,
        init=rules.init,
        probes=rules.probes,
        regularize=mean_orthogonality,
        regularization=rules.config.reg_orth_coef,
        update=rules.update,
        is_finished=rules.is_finished,
        is_scored=rules.is_scored,
        restart_warmup=rules.config.restart_warmup,
        settings=rules.settings,
        chosen=rules.plan.pace._asdict(),
        steps=rules.plan.steps,
    )


def _plan(
    sizes: dict[str, tuple[int, int]],
    steps: int,
    growth: GrowthConfig,
    initial_ranks: Mapping[str, int],
) -> GrowthPlan:
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise InputError(f"steps={steps!r} must be a whole number of at least 1")
    lowest, target_total_rank = growth.initial_rank, growth.target_total_rank
    ranks = {name: max(lowest, initial_ranks.get(name, 0)) for name in sizes}
    if not growth.growth:
        target_total_rank = sum(ranks.values())
    return plan_growth(
        sizes,
        steps=int(steps),
        initial_rank=ranks,
        target_rank=growth.target_rank,
        target_total_rank=target_total_rank,
        top_h=growth.top_h,
        init_warmup=growth.init_warmup,
        incre_interval=growth.incre_interval,
        incre_rank_num=growth.incre_rank_num,
        max_rank=growth.max_rank_rule,
        prunes=growth.prune_interval is not None,
    )


def _check_prunings(plan: GrowthPlan, interval: int | None) -> None:
    """Check that slots are pruned at all, if they are to be."""
    if interval is None or not plan.rounds:
        return
    if not any(step % interval == 0 for step in range(plan.rounds[-1] + 1, plan.prune_end)):
        raise InputError(
            f"--prune-interval {interval}: no multiple of it is a step after {plan.rounds[-1]}, "
            f"where the budget is spent, and before {plan.prune_end}. Lower it, or grow earlier by "
            "--incre-interval"
        )


class _Growth(NamedTuple):
    """The rules of growth, bound to one plan."""

    config: GrowthConfig
    plan: GrowthPlan
    adapter: AdapterConfig
    note: str  # of the targets that are left out
    function: ImportanceFunction

    @property
    def window(self) -> int:
        """Count the steps scored before a round; by default all that averages remember."""
        window, decays = self.config.score_window, (self.config.beta1, self.config.beta2)
        if isinstance(window, int):
            return window
        if not self.function.is_smoothed:
            return 1
        if window is None:
            return lasting_steps(*decays)
        return short_window(*decays, self.plan.pace.incre_interval)

    @property
    def settings(self) -> dict[str, int | float]:
        """The numbers of growth, by flag."""
        config = self.config
        is_exact = config.score_window is None
        pruning = {"prune_interval": config.prune_interval, "prune_end": self.plan.prune_end}
        return {
            **self.plan.pace._asdict(),
            **({name: n for name, n in pruning.items() if n} if self.plan.prune_end else {}),
            "rank_budget": self.plan.budget,
            "incre_rank_num": config.incre_rank_num,
            "first_reserve": config.incre_rank_num if self.plan.rounds else 0,
            "score_window": LARGEST if is_exact else self.window,
            "beta1": float(config.beta1),
            "beta2": float(config.beta2),
        }

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of adapters, in module order (JAX sorts dictionaries). A stack is one path."""
        return tuple(dict.fromkeys(map(path_of, self.plan.max_ranks)))

    def adapter_settings(self) -> dict[str, Any]:
        """Return the settings of adapters that `attach` takes."""
        return {
            "max_rank": self.plan.max_ranks,
            "initial_rank": self.config.initial_rank,
            "scaling": self.adapter.scaling_rule(self.config.target_rank),
            "dropout": self.adapter.lora_dropout,
        }

    def _ranks(self, slots: dict[Group, Slots]) -> Int[Array, " modules"]:
        return flatten({key: own.rank for key, own in slots.items()}, self.paths)

    def init(self, parts: Parts) -> ImportanceState:
        first = parts.adapters[self.paths[0]]
        return init_importance(self.plan.modules, first.lam.dtype)

    def is_finished(self, total_rank: int) -> bool:
        return total_rank >= self.plan.budget

    def is_scored(self, step: int, is_finished: bool) -> bool:
        """Return true for the last `window` steps up to a round or a pruning, while one is due."""
        if not self.plan.rounds or (is_finished and step >= self.plan.prune_end):
            return False
        return bool(_is_near_round(step, self.settings | {"score_window": self.window}))

    def probes(self, adapters: base.Adapters, is_summed: bool) -> base.Probes:
        if self.function.evidence is Evidence.NONE:
            return {}
        return {name: self._probe(adapter, is_summed) for name, adapter in adapters.items()}

    def _probe(self, adapter: Adapter, is_summed: bool) -> Probe:
        *stack, inputs, _ = adapter.A.shape
        if self.function.evidence is Evidence.SLOTS:
            return SlotProbe(jnp.zeros_like(adapter.lam))
        if is_summed:
            # |ΔW ∘ G| of a sum of micro-batches needs their summed G, not their summed scores.
            dense = (*stack, inputs, adapter.B.shape[-1])
            return DenseProbe(jnp.zeros(dense, adapter.A.dtype))
        return ScoreProbe.of(self.function.score, jnp.zeros(stack, adapter.A.dtype))

    def update(self, seen: base.Observation) -> base.Updated:
        """Move the averages, grow if this step is a round, and open the first reserve at step 0."""
        step, slots, state, settings = seen.step, seen.slots, seen.state, seen.settings
        total = self._ranks(slots).sum()
        grants = losses = jnp.zeros(self.plan.modules, jnp.int32)
        info = {}
        if seen.evidence is not None:
            raw = self._raw_importance(seen, seen.evidence)
            moved = update_importance(raw, state, settings["beta1"], settings["beta2"])
            # A step outside the window may be scored: the host may be unsure, or another run that
            # trains with this one may want it.
            is_open = (total < settings["rank_budget"]) | (step < settings.get("prune_end", 0))
            moves = is_open & _is_near_round(step, settings)
            state = jax.tree.map(lambda new, old: jnp.where(moves, new, old), moved, state)
            importance = state.sensitivity * state.uncertainty if self.function.is_smoothed else raw
            grants = self._grants(seen, importance, total)
            losses = self._losses(seen, importance)
            info = {"importance": raw, **state._asdict()}
        adapters, slots = self._grow(seen, grants)
        if self.plan.prune_end:
            adapters, slots = self._prune(seen, adapters, slots, losses)
        slots = self._advance(slots, settings)
        info["rank"] = self._ranks(slots)
        return base.Updated(adapters, slots, state, info)

    def _raw_importance(
        self, seen: base.Observation, evidence: dict[Group, Probe]
    ) -> Float[Array, " modules"]:
        scaling = self.adapter.scaling_rule(self.config.target_rank).given(seen.settings)
        scores = {}
        for index, (group, slots) in enumerate(seen.slots.items()):
            found, stack = evidence.get(group), slots.is_advancing.shape
            if isinstance(found, ScoreProbe):
                scores[group] = found.value
                continue
            update = effective_update(seen.adapters[group], slots, scaling)
            keys = jax.random.split(jax.random.fold_in(seen.key, index), stack)
            read = None if found is None else found.value
            scores[group] = over_stack(self.function.score, len(stack))(read, update, keys)
        return flatten(scores, self.paths)

    def _grants(
        self, seen: base.Observation, importance: Array, total: Int[Array, ""]
    ) -> Int[Array, " modules"]:
        settings, budget = seen.settings, seen.settings["rank_budget"]
        reserves = {key: own.reserve.sum(-1, dtype=jnp.int32) for key, own in seen.slots.items()}
        grants = allocate(
            importance,
            flatten(reserves, self.paths),
            budget - total,
            top_h=settings["top_h"],
            incre_rank_num=settings["incre_rank_num"],
        )
        warmup, interval = settings["init_warmup"], settings["incre_interval"]
        grows = is_round(seen.step, total, budget=budget, warmup=warmup, interval=interval)
        return jnp.where(grows, grants, 0)

    def _grow(
        self, seen: base.Observation, grants: Int[Array, " modules"]
    ) -> tuple[dict[Group, Adapter], dict[Group, Slots]]:
        is_ahead, step, settings = self.config.advance_learn, seen.step, seen.settings
        first = jnp.where(step == 0, settings["first_reserve"], 0)
        adapters, slots = dict(seen.moved), dict(seen.slots)
        like = {key: own.is_advancing for key, own in slots.items()}
        for key, grant in unflatten(grants, like, self.paths).items():
            opened = open_reserve(
                slots[key], jnp.full_like(grant, first), step, is_advance_learning=is_ahead
            )
            adapters[key], slots[key] = grow(
                adapters[key], opened, grant, step, is_advance_learning=is_ahead
            )
        return adapters, slots

    def _losses(
        self, seen: base.Observation, importance: Float[Array, " modules"]
    ) -> Int[Array, " modules"]:
        """Count the slots that each module loses: none but in a pruning at full budget."""
        settings, step, ranks = seen.settings, seen.step, self._ranks(seen.slots)
        if not self.plan.prune_end:
            return jnp.zeros_like(ranks)
        is_due = (step > settings["init_warmup"]) & (step % settings["prune_interval"] == 0)
        is_due &= (step < settings["prune_end"]) & (ranks.sum() >= settings["rank_budget"])
        pace = {name: settings[name] for name in ("top_h", "incre_rank_num")}
        return jnp.where(is_due, choose_losses(importance, ranks, **pace), 0)

    def _prune(
        self,
        seen: base.Observation,
        adapters: base.Adapters,
        slots: base.SlotsOf,
        losses: Int[Array, " modules"],
    ) -> tuple[base.Adapters, base.SlotsOf]:
        """Turn the weakest slots dormant and draw them anew; see that every reserve is whole."""
        like = {key: own.is_advancing for key, own in slots.items()}
        is_ahead, whole = self.config.advance_learn, seen.settings["incre_rank_num"]
        wanted = jnp.where(losses.sum() > 0, whole, 0)
        adapters, slots = dict(adapters), dict(slots)
        for index, (key, count) in enumerate(unflatten(losses, like, self.paths).items()):
            pruned = find_weakest(adapters[key], slots[key], count)
            own, left = prune(adapters[key], slots[key], pruned)
            drawn = jax.random.fold_in(seen.key, index)
            adapters[key] = jax.lax.cond(pruned.any(), _draw_anew, lambda own, *_: own,
                                         own, pruned, drawn)  # fmt: skip
            missing = jnp.maximum(wanted - left.reserve.sum(-1, dtype=jnp.int32), 0)
            slots[key] = open_reserve(left, missing, seen.step, is_advance_learning=is_ahead)
        return adapters, slots

    def _advance(self, slots: base.SlotsOf, settings: base.Settings) -> base.SlotsOf:
        """Let the reserve learn in advance until the budget is spent."""
        advancing = (self._ranks(slots).sum() < settings["rank_budget"]) & self.config.advance_learn
        return {
            key: own._replace(is_advancing=jnp.full_like(own.is_advancing, advancing))
            for key, own in slots.items()
        }


def _draw_anew(adapter: Adapter, pruned: Bool[Array, "*stack slots"], key: Array) -> Adapter:
    """Draw A and B of pruned slots as at the start."""
    keys = jax.random.split(key)
    A = INIT_STD * jax.random.normal(keys[0], adapter.A.shape, adapter.A.dtype)
    B = INIT_STD * jax.random.normal(keys[1], adapter.B.shape, adapter.B.dtype)
    return adapter._replace(
        A=jnp.where(pruned[..., None, :], A, adapter.A),
        B=jnp.where(pruned[..., :, None], B, adapter.B),
    )


def _is_near_round(step: Number, settings: base.Settings) -> Bool[Array, ""] | bool:
    """Return whether a round or a pruning is less than `score_window` steps away."""
    intervals = [settings[n] for n in ("incre_interval", "prune_interval") if n in settings]
    given = {"warmup": settings["init_warmup"], "window": settings["score_window"]}
    near = [is_near_round(step, interval=interval, **given) for interval in intervals]
    return functools.reduce(operator.or_, near)

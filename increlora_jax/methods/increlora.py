"""IncreLoRA: ranks grow where importance says so, under one exact budget (paper §3)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.core.adapter import Adapter, Slots, effective_update
from increlora_jax.core.allocator import allocate, grow, is_round, open_reserve
from increlora_jax.core.importance import (
    IMPORTANCE_FUNCTIONS,
    Evidence,
    ImportanceState,
    init_importance,
    update_importance,
)
from increlora_jax.core.plan import GrowthPlan, plan_growth
from increlora_jax.core.regularizer import mean_orthogonality
from increlora_jax.methods import base
from increlora_jax.nn.attach import Targets, attach, target_sizes
from increlora_jax.nn.parts import Parts


def increlora(
    model: nnx.Module,
    *,
    steps: int,
    targets: Targets,
    exclude: Targets = (),
    adapter: AdapterConfig,
    growth: GrowthConfig,
    is_trained: Callable[[str], bool] = base.trains_nothing,
    dtype: Any = jnp.float32,
) -> base.Method:
    """Plan the growth of `model`, which may be abstract, over `steps`, and make the method.

    Raises:
        InputError: a plan that cannot finish in the run, with the flag to change.
    """
    plan = _plan(target_sizes(model, targets, exclude), steps, growth)
    rules = _Growth(growth, plan, adapter)

    def attach_adapters(model: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        settings = rules.adapter_settings()
        return attach(model, targets, exclude=exclude, rngs=rngs, dtype=dtype, **settings)

    return base.Method(
        name="increlora",
        description=plan.describe(),
        rank_budget=plan.budget,
        attach=attach_adapters,
        is_trained=is_trained,
        init=rules.init,
        probes=rules.probes,
        score=rules.function.score if rules.function.evidence is Evidence.DENSE else None,
        regularize=mean_orthogonality,
        regularization=growth.reg_orth_coef,
        update=rules.update,
        is_scored=rules.is_scored,
    )


def _plan(sizes: dict[str, tuple[int, int]], steps: int, growth: GrowthConfig) -> GrowthPlan:
    target_total_rank = growth.target_total_rank
    if not growth.growth:
        target_total_rank = growth.initial_rank * len(sizes)
    return plan_growth(
        sizes,
        steps=steps,
        initial_rank=growth.initial_rank,
        target_rank=growth.target_rank,
        target_total_rank=target_total_rank,
        top_h=growth.top_h,
        init_warmup=growth.init_warmup,
        incre_interval=growth.incre_interval,
        incre_rank_num=growth.incre_rank_num,
        max_rank=growth.max_rank_rule,
    )


class _Growth(NamedTuple):
    """The rules of growth, bound to one plan."""

    config: GrowthConfig
    plan: GrowthPlan
    adapter: AdapterConfig

    @property
    def function(self) -> Any:
        return IMPORTANCE_FUNCTIONS[self.config.importance]

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(self.plan.max_ranks)  # in module order; jax sorts dictionaries, this does not

    def adapter_settings(self) -> dict[str, Any]:
        """What `attach` is told of the adapters."""
        return {
            "max_rank": self.plan.max_ranks,
            "initial_rank": self.config.initial_rank,
            "scaling": self.adapter.scaling_rule(self.config.target_rank),
            "dropout": self.adapter.lora_dropout,
        }

    def _ranks(self, slots: dict[str, Slots]) -> Int[Array, " modules"]:
        return jnp.stack([slots[name].rank for name in self.modules])

    def init(self, parts: Parts) -> ImportanceState:
        first = parts.adapters[self.modules[0]]
        return init_importance(len(self.modules), first.lam.dtype)

    def is_scored(self, step: int, is_finished: bool) -> bool:
        """Every step until the budget is spent, or only the last `score_window` before a round."""
        if is_finished or not self.plan.rounds:
            return False
        window, interval = self.config.score_window, self.config.incre_interval
        if window is None:
            return True
        ahead = max(step, self.config.init_warmup + 1)
        next_round = -(-ahead // interval) * interval
        return next_round - step < window

    def probes(self, adapters: dict[str, Adapter], is_summed: bool) -> dict[str, Array]:
        def zero(adapter: Adapter) -> Array:
            dense = (*adapter.A.shape[:-1], adapter.B.shape[-1])
            # |ΔW ∘ G| of a sum of micro-batches needs their summed G, not their summed scores.
            shape = dense if is_summed else ()
            return jnp.zeros(shape, adapter.A.dtype)

        match self.function.evidence:
            case Evidence.NONE:
                return {}
            case Evidence.SLOTS:
                return {name: jnp.zeros_like(adapter.lam) for name, adapter in adapters.items()}
            case _:
                return {name: zero(adapter) for name, adapter in adapters.items()}

    def update(
        self,
        step: Array,
        key: Array,
        adapters: dict[str, Adapter],
        slots: dict[str, Slots],
        state: ImportanceState,
        evidence: dict[str, Array] | None,
    ) -> base.Updated:
        """Move the averages, grow if this step is a round, and open the first reserve at step 0."""
        is_scored = evidence is not None
        total = self._ranks(slots).sum()
        has_budget = total < self.plan.budget
        grants = jnp.zeros(len(self.modules), jnp.int32)
        info = {}
        if is_scored:
            raw = self._raw_importance(key, adapters, slots, evidence or {})
            moved = update_importance(raw, state, self.config.beta1, self.config.beta2)
            state = jax.tree.map(lambda new, old: jnp.where(has_budget, new, old), moved, state)
            importance = state.sensitivity * state.uncertainty if self.function.is_smoothed else raw
            grants = self._grants(step, importance, slots, total)
            info = {"importance": raw, **state._asdict()}
        adapters, slots = self._grow(step, adapters, slots, grants)
        info["rank"] = self._ranks(slots)
        return base.Updated(adapters, slots, state, info)

    def _raw_importance(
        self,
        key: Array,
        adapters: dict[str, Adapter],
        slots: dict[str, Slots],
        evidence: dict[str, Array],
    ) -> Array:
        scores = []
        for index, name in enumerate(self.modules):
            found = evidence.get(name)
            if found is None or found.ndim:  # else the backward pass has left the score itself
                scaling = self.adapter.scaling_rule(self.config.target_rank)
                update = effective_update(adapters[name], slots[name], scaling)
                found = self.function.score(found, update, jax.random.fold_in(key, index))
            scores.append(found)
        return jnp.stack(scores)

    def _grants(
        self, step: Array, importance: Array, slots: dict[str, Slots], total: Int[Array, ""]
    ) -> Int[Array, " modules"]:
        config, budget = self.config, self.plan.budget
        available = jnp.stack([slots[name].reserve.sum(dtype=jnp.int32) for name in self.modules])
        grants = allocate(
            importance,
            available,
            budget - total,
            top_h=config.top_h,
            incre_rank_num=config.incre_rank_num,
        )
        grows = is_round(
            step,
            total,
            budget=budget,
            warmup=config.init_warmup,
            interval=config.incre_interval,
        )
        return jnp.where(grows, grants, 0)

    def _grow(
        self,
        step: Array,
        adapters: dict[str, Adapter],
        slots: dict[str, Slots],
        grants: Int[Array, " modules"],
    ) -> tuple[dict[str, Adapter], dict[str, Slots]]:
        is_ahead = self.config.advance_learn
        first = jnp.where(step == 0, self.config.incre_rank_num if self.plan.rounds else 0, 0)
        adapters, slots = dict(adapters), dict(slots)
        for index, name in enumerate(self.modules):
            opened = open_reserve(slots[name], first, step, is_advance_learning=is_ahead)
            adapters[name], slots[name] = grow(
                adapters[name], opened, grants[index], step, is_advance_learning=is_ahead
            )
        advancing = (self._ranks(slots).sum() < self.plan.budget) & is_ahead
        return adapters, {n: s._replace(is_advancing=advancing) for n, s in slots.items()}

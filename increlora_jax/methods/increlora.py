"""IncreLoRA: ranks grow where importance says so, under one exact budget (paper §3)."""

from collections.abc import Callable
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.core.adapter import Adapter, Slots, effective_update, over_stack
from increlora_jax.core.allocator import allocate, grow, is_round, open_reserve
from increlora_jax.core.importance import (
    IMPORTANCE_FUNCTIONS,
    Evidence,
    ImportanceState,
    init_importance,
    lasting_steps,
    update_importance,
)
from increlora_jax.core.plan import GrowthPlan, plan_growth
from increlora_jax.core.regularizer import mean_orthogonality
from increlora_jax.methods import base
from increlora_jax.nn.kernels import path_of
from increlora_jax.nn.model import attach, target_sizes
from increlora_jax.nn.parts import Parts
from increlora_jax.nn.targets import NO_PARAMETERS, Parameters, Targets


def increlora(
    model: Any,
    *,
    steps: int,
    targets: Targets,
    exclude: Targets = (),
    parameters: Parameters = NO_PARAMETERS,
    adapter: AdapterConfig,
    growth: GrowthConfig,
    is_trained: Callable[[str], bool] = base.trains_nothing,
    dtype: Any = jnp.float32,
) -> base.Method:
    """Plan the growth of `model`, which may be abstract, over `steps`, and make the method.

    `model` is an NNX module, a `LinenModel` or a pytree of parameters.

    Raises:
        InputError: a plan that cannot finish in the run, with the flag to change.
    """
    plan = _plan(target_sizes(model, targets, exclude, parameters), steps, growth)
    rules = _Growth(growth, plan, adapter)
    settings = rules.adapter_settings() | {"exclude": exclude, "parameters": parameters}
    return base.Method(
        name="increlora",
        description=plan.describe(),
        rank_budget=plan.budget,
        attach=lambda model, rngs: attach(model, targets, rngs=rngs, dtype=dtype, **settings),
        is_trained=is_trained,
        init=rules.init,
        probes=rules.probes,
        score=rules.function.score if rules.function.evidence is Evidence.DENSE else None,
        regularize=mean_orthogonality,
        regularization=growth.reg_orth_coef,
        update=rules.update,
        is_scored=rules.is_scored,
        restart_warmup=growth.restart_warmup,
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
    def window(self) -> int:
        """How many steps up to a round are scored: unless told, all that can bear on it."""
        if self.config.score_window is not None:
            return self.config.score_window
        is_smoothed = self.function.is_smoothed
        return lasting_steps(self.config.beta1, self.config.beta2) if is_smoothed else 1

    @property
    def paths(self) -> tuple[str, ...]:
        """What has an adapter, in module order (jax sorts dictionaries); a stack is one of them."""
        return tuple(dict.fromkeys(map(path_of, self.plan.max_ranks)))

    def adapter_settings(self) -> dict[str, Any]:
        """What `attach` is told of the adapters."""
        return {
            "max_rank": self.plan.max_ranks,
            "initial_rank": self.config.initial_rank,
            "scaling": self.adapter.scaling_rule(self.config.target_rank),
            "dropout": self.adapter.lora_dropout,
        }

    def _ranks(self, slots: dict[str, Slots]) -> Int[Array, " modules"]:
        return self._flat({path: slots[path].rank for path in self.paths})

    def _flat(self, values: dict[str, Array]) -> Array:
        """One entry a module, of values [*stack] by path."""
        return jnp.concatenate([values[path].reshape(-1) for path in self.paths])

    def _by_path(self, values: Array, slots: dict[str, Slots]) -> dict[str, Array]:
        """The inverse of `_flat`."""
        stacks = [slots[path].is_advancing.shape for path in self.paths]
        ends = list(accumulate(map(prod, stacks)))
        pieces = jnp.split(values, ends[:-1])
        return {
            path: piece.reshape(stack)
            for path, piece, stack in zip(self.paths, pieces, stacks, strict=True)
        }

    def init(self, parts: Parts) -> ImportanceState:
        first = parts.adapters[self.paths[0]]
        return init_importance(self.plan.modules, first.lam.dtype)

    def is_scored(self, step: int, is_finished: bool) -> bool:
        """The last `window` steps up to every round, until the budget is spent."""
        if is_finished or not self.plan.rounds:
            return False
        ahead, interval = max(step, self.config.init_warmup + 1), self.config.incre_interval
        next_round = -(-ahead // interval) * interval
        return next_round - step < self.window

    def probes(self, adapters: dict[str, Adapter], is_summed: bool) -> dict[str, Array]:
        def zero(adapter: Adapter) -> Array:
            dense = (*adapter.A.shape[:-1], adapter.B.shape[-1])
            # |ΔW ∘ G| of a sum of micro-batches needs their summed G, not their summed scores.
            shape = dense if is_summed else adapter.A.shape[:-2]
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
        grants = jnp.zeros(self.plan.modules, jnp.int32)
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
        scores = {}
        for index, path in enumerate(self.paths):
            found, stack = evidence.get(path), slots[path].is_advancing.shape
            if found is None or found.ndim > len(stack):
                scaling = self.adapter.scaling_rule(self.config.target_rank)
                update = effective_update(adapters[path], slots[path], scaling)
                own = jax.random.fold_in(key, index)
                keys = jax.random.split(own, stack) if stack else own
                score = over_stack(self.function.score, len(stack))
                scores[path] = score(found, update, keys)
            else:  # the backward pass has left the score itself
                scores[path] = found
        return self._flat(scores)

    def _grants(
        self, step: Array, importance: Array, slots: dict[str, Slots], total: Int[Array, ""]
    ) -> Int[Array, " modules"]:
        config, budget = self.config, self.plan.budget
        reserves = {path: s.reserve.sum(axis=-1, dtype=jnp.int32) for path, s in slots.items()}
        available = self._flat(reserves)
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
        for path, grant in self._by_path(grants, slots).items():
            opened = open_reserve(
                slots[path], jnp.full_like(grant, first), step, is_advance_learning=is_ahead
            )
            adapters[path], slots[path] = grow(
                adapters[path], opened, grant, step, is_advance_learning=is_ahead
            )
        advancing = (self._ranks(slots).sum() < self.plan.budget) & is_ahead
        return adapters, {
            path: s._replace(is_advancing=jnp.full_like(s.is_advancing, advancing))
            for path, s in slots.items()
        }

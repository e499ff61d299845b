"""The plan of a run's growth, made before the model is loaded: rounds, budget, buffer width."""

from collections.abc import Mapping
from math import ceil
from typing import Any, Literal, NamedTuple

from increlora_jax.core.pace import Auto, Pace, choose_pace
from increlora_jax.errors import InputError

SLOT_MULTIPLE = 8
"""Buffers are rounded up to this many slots: narrower ones run no faster."""

DEFAULT_WIDTH = 32
"""The default cap on a buffer is max(32, 4 · target_rank) slots, since width costs time."""


PRUNE_ENDS = 0.5
"""Share of a run's steps after which no slot is pruned."""


class GrowthPlan(NamedTuple):
    """Plan of the growth of ranks over a run.

    Attributes:
        steps: of the run.
        modules: that grow.
        initial_total: the sum of the ranks at the start.
        budget: the sum of the ranks at the end.
        pace: the settings of rounds.
        rounds: the steps at which ranks grow until the budget is spent.
        max_ranks: buffer width S by module, at most min(in, out).
        prune_end: the step from which no slot is pruned; default: 0.
    """

    steps: int
    modules: int
    initial_total: int
    budget: int
    pace: Pace
    rounds: tuple[int, ...]
    max_ranks: dict[str, int]
    prune_end: int = 0

    def describe(self) -> str:
        """Return the plan in one paragraph for the user."""
        widths = sorted(set(self.max_ranks.values()))
        width = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        head = f"{self.modules} modules, {self.steps} steps, buffers of {width} slots"
        if not self.rounds:
            return f"{head}; total rank {self.initial_total} throughout"
        first, last = self.rounds[0], self.rounds[-1]
        pruned = f", slots may be pruned until step {self.prune_end}" if self.prune_end else ""
        whole = ", every module in each" if self.pace.top_h >= self.modules > 1 else ""
        return (
            f"{head}; total rank {self.initial_total} → {self.budget} in {len(self.rounds)} "
            f"rounds{whole}, steps {first} to {last}, then {self.steps - 1 - last} steps at full "
            f"budget{pruned}"
        )


def plan_growth(
    sizes: dict[str, tuple[int, int]],
    *,
    steps: int,
    initial_rank: int | Mapping[str, int],
    target_rank: float,
    target_total_rank: int | None,
    top_h: int | Auto,
    init_warmup: int | Auto,
    incre_interval: int | Auto,
    incre_rank_num: int,
    max_rank: int | Literal["auto", "exact"],
    prunes: bool = False,
) -> GrowthPlan:
    """Return the plan: the rounds that spend the budget, and the buffers that they need.

    Args:
        sizes: (in, out) of every module.
        steps: of the run.
        initial_rank: active slots at the start, of every module or by module.
        target_rank: average of the final ranks.
        target_total_rank: the budget; None: target_rank · modules.
        top_h: modules that grow in a round; if "auto", `choose_pace` chooses.
        init_warmup: steps before the first round, or "auto".
        incre_interval: steps between rounds, or "auto".
        incre_rank_num: slots that a module gets in a round.
        max_rank: slots of a buffer; "exact": the most that growth could fill; "auto": capped.
        prunes: whether slots are pruned; default: False.

    Raises:
        InputError: a budget, a rank or rounds that cannot be; names the flag to change.
    """
    ranks = dict.fromkeys(sizes, initial_rank) if isinstance(initial_rank, int) else initial_rank
    budget = target_total_rank or round(target_rank * len(sizes))
    _check_ranks(sizes, ranks, budget, max_rank)
    wanted = {"top_h": top_h, "init_warmup": init_warmup, "incre_interval": incre_interval}
    totals = sum(ranks.values()), budget
    plan = _lay_out(wanted, steps, len(sizes), totals, incre_rank_num, prunes=prunes)
    width = buffer_width(_most_slots(plan, ranks, incre_rank_num), target_rank, max_rank)
    return _with_buffers(plan, {name: min(width, *size) for name, size in sizes.items()})


def _lay_out(
    wanted: dict[str, Any],
    steps: int,
    modules: int,
    totals: tuple[int, int],
    incre_rank_num: int,
    *,
    prunes: bool,
) -> GrowthPlan:
    """Return the plan with its pace, the rounds that spend the budget, and the last pruning."""
    initial_total, budget = totals
    grants = ceil((budget - initial_total) / incre_rank_num)
    pace = choose_pace(steps=steps, modules=modules, grants=grants, **wanted)
    plan = GrowthPlan(steps, modules, initial_total, budget, pace, (), {})
    possible = pace.rounds(steps)
    needed = ceil(grants / min(pace.top_h, modules))
    if needed > len(possible):
        raise InputError(_too_few_rounds(plan, needed, len(possible)))
    # A round must follow the last pruning, to grow its slots back.
    end = min(int(PRUNE_ENDS * steps), steps - pace.incre_interval) if prunes and needed else 0
    return plan._replace(rounds=tuple(possible[:needed]), prune_end=end)


def _most_slots(plan: GrowthPlan, ranks: Mapping[str, int], incre_rank_num: int) -> int:
    """Count the slots that a module could fill: initial + rounds · growth + reserve."""
    rounds, largest = len(plan.rounds), max(ranks.values())
    others = plan.initial_total - largest
    others = plan.modules - 1 if plan.prune_end else others  # which may lose all slots but one
    most = plan.budget - others
    if not plan.prune_end:
        most = min(largest + rounds * incre_rank_num, most)
    return most + (incre_rank_num if rounds else 0)


def _with_buffers(plan: GrowthPlan, max_ranks: dict[str, int]) -> GrowthPlan:
    capacity = sum(max_ranks.values())
    if plan.budget > capacity:
        raise InputError(
            f"the budget of {plan.budget} ranks does not fit the buffers, which hold {capacity} in "
            "all. Raise --max-rank (or --max-rank exact) or lower --target-rank"
        )
    return plan._replace(max_ranks=max_ranks)


def buffer_width(most: int, target_rank: float, max_rank: int | str) -> int:
    """Return the slots of a buffer, of which a run could fill `most`."""
    if isinstance(max_rank, int):
        return max_rank
    cap = most if max_rank == "exact" else max(DEFAULT_WIDTH, ceil(4 * target_rank))
    return ceil(min(most, cap) / SLOT_MULTIPLE) * SLOT_MULTIPLE


def _check_ranks(
    sizes: dict[str, tuple[int, int]],
    ranks: Mapping[str, int],
    budget: int,
    max_rank: int | str,
) -> None:
    initial_rank, initial_total = min(ranks.values()), sum(ranks.values())
    asked = max(initial_rank, max_rank) if isinstance(max_rank, int) else initial_rank
    flag = "--max-rank" if asked != initial_rank else "--initial-rank"
    for name, (inputs, outputs) in sizes.items():
        if asked > min(inputs, outputs):
            raise InputError(
                f"{flag} {asked} is more than the matrix of {name} can have: its {inputs} × "
                f"{outputs} kernel has rank at most {min(inputs, outputs)}. Lower {flag} or leave "
                "the module out with --exclude-modules"
            )
    if isinstance(max_rank, int) and max_rank < initial_rank:
        raise InputError(
            f"--max-rank {max_rank} is below --initial-rank {initial_rank}. Raise --max-rank"
        )
    if budget < initial_total:
        is_even = initial_total == initial_rank * len(sizes)
        told = (
            f"{len(sizes)} modules × --initial-rank {initial_rank}"
            if is_even
            else ("those of --init-adapter among them")
        )
        raise InputError(
            f"the budget of {budget} ranks is below the initial total of {initial_total} "
            f"({told}). Raise --target-rank or --target-total-rank"
            + (", or lower --initial-rank" if is_even else "")
        )


def _too_few_rounds(plan: GrowthPlan, needed: int, possible: int) -> str:
    is_widest = plan.pace.top_h >= plan.modules  # every module grows in every round
    return (
        f"growing from {plan.initial_total} to {plan.budget} ranks takes {needed} rounds, but "
        f"{plan.steps} steps hold only {possible}. Raise {'' if is_widest else '--top-h, '}"
        "--incre-rank-num or --max-steps (or --num-train-epochs), or lower --incre-interval, "
        "--init-warmup or --target-rank"
    )

"""The plan of a run's growth, made before the model is loaded: rounds, budget, buffer width."""

from math import ceil
from typing import Literal, NamedTuple

from increlora_jax.core.pace import Auto, Pace, choose_pace
from increlora_jax.errors import InputError

SLOT_MULTIPLE = 8
"""Buffers are rounded up to this many slots: narrower ones run no faster."""

DEFAULT_WIDTH = 32
"""The default cap on a buffer is max(32, 4 · target_rank) slots, since width costs time."""


class GrowthPlan(NamedTuple):
    """Plan of the growth of ranks over a run."""

    steps: int
    modules: int
    initial_total: int
    budget: int
    pace: Pace
    rounds: tuple[int, ...]  # the steps at which ranks grow until the budget is spent
    max_ranks: dict[str, int]  # buffer width S by module

    def describe(self) -> str:
        """Return the plan in one paragraph for the user."""
        widths = sorted(set(self.max_ranks.values()))
        width = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        head = f"{self.modules} modules, {self.steps} steps, buffers of {width} slots"
        if not self.rounds:
            return f"{head}; total rank {self.initial_total} throughout"
        first, last = self.rounds[0], self.rounds[-1]
        whole = ", every module in each" if self.pace.top_h >= self.modules > 1 else ""
        return (
            f"{head}; total rank {self.initial_total} → {self.budget} in {len(self.rounds)} "
            f"rounds{whole}, steps {first} to {last}, then {self.steps - 1 - last} steps at full "
            "budget"
        )


def plan_growth(
    sizes: dict[str, tuple[int, int]],
    *,
    steps: int,
    initial_rank: int,
    target_rank: float,
    target_total_rank: int | None,
    top_h: int | Auto,
    init_warmup: int | Auto,
    incre_interval: int | Auto,
    incre_rank_num: int,
    max_rank: int | Literal["auto", "exact"],
) -> GrowthPlan:
    """Plan the rounds that spend the budget, and the buffers that they need.

    A module gets at most initial + rounds · growth + reserve slots, and at most min(in, out).

    Args:
        sizes: (in, out) of every module.
        steps: of the run.
        initial_rank: active slots of every module at the start.
        target_rank: average of the final ranks.
        target_total_rank: the budget; None: target_rank · modules.
        top_h: modules that grow in a round; if "auto", `choose_pace` chooses.
        init_warmup: steps before the first round, or "auto".
        incre_interval: steps between rounds, or "auto".
        incre_rank_num: slots that a module gets in a round.
        max_rank: slots of a buffer. If "exact", as many as a module could get; if "auto", at most
            max(32, 4 · target_rank) of them.

    Returns:
        The plan.

    Raises:
        InputError: a budget below the initial total or beyond the buffers, a rank over a matrix,
            or rounds that do not fit into the run's steps; names the flag to change.
    """
    modules, initial_total = len(sizes), len(sizes) * initial_rank
    budget = target_total_rank if target_total_rank is not None else round(target_rank * modules)
    _check_ranks(sizes, initial_rank, budget, max_rank)
    grants = ceil((budget - initial_total) / incre_rank_num)
    wanted = {"top_h": top_h, "init_warmup": init_warmup, "incre_interval": incre_interval}
    pace = choose_pace(steps=steps, modules=modules, grants=grants, **wanted)
    possible, needed = pace.rounds(steps), ceil(grants / min(pace.top_h, modules))
    if needed > len(possible):
        counts = _Rounds(needed, len(possible), steps, is_widest=pace.top_h >= modules)
        raise InputError(_too_few_rounds(counts, budget, initial_total))
    reserve = incre_rank_num if needed else 0
    most = min(initial_rank + needed * incre_rank_num, budget - (modules - 1) * initial_rank)
    width = _buffer_width(most + reserve, target_rank, max_rank)
    max_ranks = {name: min(width, *size) for name, size in sizes.items()}
    _check_capacity(max_ranks, budget)
    rounds = tuple(possible[:needed])
    return GrowthPlan(steps, modules, initial_total, budget, pace, rounds, max_ranks)


def _buffer_width(most: int, target_rank: float, max_rank: int | str) -> int:
    if isinstance(max_rank, int):
        return max_rank
    cap = most if max_rank == "exact" else max(DEFAULT_WIDTH, ceil(4 * target_rank))
    return ceil(min(most, cap) / SLOT_MULTIPLE) * SLOT_MULTIPLE


def _check_ranks(
    sizes: dict[str, tuple[int, int]], initial_rank: int, budget: int, max_rank: int | str
) -> None:
    asked = max(initial_rank, max_rank) if isinstance(max_rank, int) else initial_rank
    flag = "--max-rank" if asked != initial_rank else "--initial-rank"
    for name, (inputs, outputs) in sizes.items():
        if asked > min(inputs, outputs):
            raise InputError(
                f"{flag} {asked} is more than the matrix of {name} can have: its {inputs} × "
                f"{outputs} kernel has rank at most {min(inputs, outputs)}; lower {flag} or leave "
                "the module out with --exclude-modules"
            )
    if isinstance(max_rank, int) and max_rank < initial_rank:
        raise InputError(
            f"--max-rank {max_rank} is below --initial-rank {initial_rank}; raise --max-rank"
        )
    initial_total = initial_rank * len(sizes)
    if budget < initial_total:
        raise InputError(
            f"the budget of {budget} ranks is below the initial total of {initial_total} "
            f"({len(sizes)} modules × --initial-rank {initial_rank}); raise --target-rank or "
            "--target-total-rank, or lower --initial-rank"
        )


class _Rounds(NamedTuple):
    needed: int
    possible: int
    steps: int
    is_widest: bool  # every module grows in every round


def _too_few_rounds(counts: _Rounds, budget: int, initial: int) -> str:
    top_h = "" if counts.is_widest else "--top-h, "
    return (
        f"growing from {initial} to {budget} ranks takes {counts.needed} rounds, but "
        f"{counts.steps} steps hold only {counts.possible}; raise {top_h}--incre-rank-num or "
        "--max-steps (or --num-train-epochs), or lower --incre-interval, --init-warmup or "
        "--target-rank"
    )


def _check_capacity(max_ranks: dict[str, int], budget: int) -> None:
    capacity = sum(max_ranks.values())
    if budget > capacity:
        raise InputError(
            f"the budget of {budget} ranks does not fit the buffers, which hold {capacity} in all; "
            "raise --max-rank (or --max-rank exact) or lower --target-rank"
        )

"""The pace of growth: when rounds come and how many modules grow in each, chosen from the run."""

from math import ceil
from typing import Literal, NamedTuple, TypeVar

Auto = Literal["auto"]
N = TypeVar("N")  # a number, which may be traced

GROWTH_BEGINS, GROWTH_ENDS = 0.05, 0.35
"""Shares of a run's steps within which the budget is spent.

The paper's recipes begin at 2 to 6 % and end at 32 to 41 % (SST-2 4 % and 32 %).
"""

MOST_ROUNDS, FEW_ROUNDS = 15, 4
"""The paper's recipes for target rank 2 take 12 to 36 rounds, most of them 15.

Short runs take fewer, so that `REMEMBERED` steps are between two rounds, but at least 4.
"""

REMEMBERED = 20
"""Steps after which an average with the paper's decay of 0.85 holds 4 % of its old value."""

WARMUP = 0.06
"""Share of a run's steps that a warmup takes."""


class Pace(NamedTuple):
    """The three settings of growth that follow a run's length."""

    top_h: int
    init_warmup: int
    incre_interval: int

    def rounds(self, steps: int) -> list[int]:
        """List the steps t < `steps` at which ranks may grow: t > init_warmup, t % interval = 0."""
        return [t for t in range(0, steps, self.incre_interval) if t > self.init_warmup]


def choose_pace(
    *,
    steps: int,
    modules: int,
    grants: int,
    top_h: int | Auto,
    init_warmup: int | Auto,
    incre_interval: int | Auto,
) -> Pace:
    """Choose each `auto` so that the budget is spent between 5 % and 35 % of the run's steps.

    Numbers given are kept. If the grants do not fit into this share, rounds continue beyond it.

    Args:
        steps: of the run.
        modules: that can grow.
        grants: needed to spend the budget; a module gets at most one a round.
        top_h: modules that grow in a round, or auto: as few as the rounds allow.
        init_warmup: steps before the first round, or auto.
        incre_interval: steps between rounds, or auto: as long as the rounds allow.

    Returns:
        The three settings as numbers.
    """
    begin = int(GROWTH_BEGINS * steps) if init_warmup == "auto" else init_warmup
    share = int((GROWTH_ENDS - GROWTH_BEGINS) * steps)
    left = max(1, min(share, steps - 1 - begin))
    if incre_interval == "auto":
        rounds = _count_rounds(grants, modules, left, top_h)
        interval = max(1, left // rounds)
    else:
        interval = incre_interval
        rounds = max(1, (begin + left) // interval - begin // interval)
    few = min(modules, max(1, ceil(grants / rounds)))
    return Pace(few if top_h == "auto" else top_h, begin, interval)


def _count_rounds(grants: int, modules: int, left: int, top_h: int | Auto) -> int:
    """Count the rounds of a pace whose interval is free, in `left` steps."""
    if top_h == "auto":
        fewest = ceil(grants / modules)
        wanted = min(MOST_ROUNDS, max(FEW_ROUNDS, left // REMEMBERED))
        rounds = max(1, fewest, min(wanted, grants, left))
        return max(1, ceil(grants / max(1, ceil(grants / rounds))))
    return max(1, ceil(grants / min(top_h, modules)))


def choose_warmup(warmup_steps: N | Auto, steps: int) -> N | int:
    """Return the steps of warmup: those given, or 6 % of the run's."""
    return round(WARMUP * steps) if isinstance(warmup_steps, str) else warmup_steps

"""Figures from the measurements: the whole run's step, ratios, use of the machine."""

from collections.abc import Callable
from statistics import mean, median, quantiles
from typing import Any, NamedTuple

from contenders import (
    JAX_PEAK,
    LORA,
    NARROW,
    PEFT_ADALORA,
    PEFT_LORA,
    PEFT_LORA_COMPILED,
    PUBLISHED,
    RUN,
    SCORED,
    TORCH_PEAK,
    UNSCORED,
    WIDE,
)
from peaks import datasheet_peak

Found = dict[str, Any]

WHOLE = "increlora, whole run"
EVERY = "increlora, whole run, scored at every step to the last round"


class Row(NamedTuple):
    """Steps of a contender: seconds of each turn's step, FLOPs of one, peak of memory."""

    turns: list[float]
    flops: float
    memory: float


def rows_of(found: Found) -> dict[str, Row]:
    """Return the rows of the contenders that ran, and of the whole run's mean step."""
    measured = {
        name: Row(row["turns"], row["flops"], row["last"]["memory"])
        for name, row in found["rows"].items()
        if "flops" in row and "turns" in row
    }
    if not {SCORED, UNSCORED} <= measured.keys():
        return measured
    scored, unscored = measured[SCORED], measured[UNSCORED]
    shares = found["scored_share"]
    whole = {
        WHOLE: _mix(scored, unscored, shares["default"]),
        EVERY: _mix(scored, unscored, shares["every step"]),
    }
    return whole | measured


def _mix(scored: Row, unscored: Row, share: float) -> Row:
    """Return the mean step of a run, turn by turn."""
    pairs = zip(scored.turns, unscored.turns, strict=True)
    turns = [share * s + (1 - share) * u for s, u in pairs]
    flops = share * scored.flops + (1 - share) * unscored.flops
    return Row(turns, flops, max(scored.memory, unscored.memory))


def ratio(row: Row, other: Row) -> float:
    """Return the ratio of two steps' times: the median of the turns' own ratios."""
    return median(a / b for a, b in zip(row.turns, other.turns, strict=True))


def quartiles(values: list[float]) -> tuple[float, float]:
    """Return the first and the third quartile."""
    low, _, high = quantiles(values, n=4)
    return low, high


def measured_peak(found: Found) -> float:
    """Return the FLOP/s of matrix products, of the faster framework."""
    return max(peaks(found).values())


def peaks(found: Found) -> dict[str, float]:
    """Return the FLOP/s of matrix products by framework: the median of the turns."""
    rows = {name: found["rows"][name] for name in (JAX_PEAK, TORCH_PEAK)}
    return {name: row["last"]["flops"] / median(row["turns"]) for name, row in rows.items()}


def stated_peak(found: Found) -> float | None:
    """Return the FLOP/s of the datasheet, if there is one."""
    return datasheet_peak(found["machine"]["device"], found["work"]["dtype"])


def run_in_few_steps(found: Found) -> float | None:
    """Return the mean step of the complete run, divided by LoRA's step beside it."""
    run = found["whole_run"]
    return mean(run[RUN]) / mean(run[LORA]) if run else None


class Goal(NamedTuple):
    """A bound on the rows of some contenders."""

    text: str
    of: tuple[str, ...]
    measure: Callable[..., float]
    bound: float
    is_at_most: bool

    def is_met(self, value: float) -> bool:
        """Return whether the bound holds."""
        return value <= self.bound if self.is_at_most else value >= self.bound


def _at_most(text: str, bound: float, one: str, other: str) -> Goal:
    return Goal(text, (one, other), ratio, bound, is_at_most=True)


def _faster(text: str, bound: float, one: str, other: str) -> Goal:
    return Goal(text, (other, one), ratio, bound, is_at_most=False)


def _memory(row: Row, other: Row) -> float:
    return row.memory / other.memory


def _milliseconds(row: Row) -> float:
    return 1e3 * median(row.turns)


def _teraflops(row: Row) -> float:
    """Return the TFLOP/s, with the FLOPs of the formula, as in MFU."""
    return row.flops / median(row.turns) / 1e12


def _unscored(text: str, measure: Callable[[Row], float], bound: float) -> Goal:
    return Goal(f"an unscored step: {text}", (UNSCORED,), measure, bound, is_at_most=False)


def _thousand_tokens(count: int) -> Callable[[Row], float]:
    """Return a function for thousands of tokens a second, with `count` tokens a step."""
    return lambda row: count / median(row.turns) / 1e3


CPU_GOALS = (
    _at_most("a whole run's step, in steps of this project's LoRA", 1.08, WHOLE, LORA),
    _at_most("a scored step, in steps of this project's LoRA", 1.45, SCORED, LORA),
    _faster("a whole run, times as fast as PEFT's AdaLoRA", 1.8, WHOLE, PEFT_ADALORA),
    _faster("a whole run, times as fast as PEFT's LoRA", 1.6, WHOLE, PEFT_LORA),
    _faster("a whole run, times as fast as the published code's cost", 2.6, WHOLE, PUBLISHED),
    _at_most("a step with 32 slots, in steps with 8", 1.05, WIDE, NARROW),
    Goal("peak memory, in that of PEFT's LoRA", (WHOLE, PEFT_LORA), _memory, 1.0, is_at_most=True),
)
GPU_GOALS = {
    ("deberta-v3-base", 32, 128): (
        Goal("an unscored step: ms", (UNSCORED,), _milliseconds, 5.0, is_at_most=True),
        _faster("an unscored step, times as fast as PEFT's LoRA", 4.0, UNSCORED, PEFT_LORA),
        _faster("the same, PEFT's compiled", 2.0, UNSCORED, PEFT_LORA_COMPILED),
    ),
    ("deberta-v3-base", 32, 384): (
        _unscored("TFLOP/s, 40 % of what an H200's datasheet says", _teraflops, 396.0),
    ),
    ("llama-3.2-1b", 8, 1024): (_unscored("thousand tokens/s", _thousand_tokens(8 * 1024), 80.0),),
    ("llama-7b", 8, 1024): (_unscored("thousand tokens/s", _thousand_tokens(8 * 1024), 15.0),),
}
"""Goals for an H200 in bfloat16."""


def goals(found: Found) -> list[tuple[Goal, float]]:
    """Return the goals for this machine and work that were measured, with the values reached."""
    rows, work = rows_of(found), found["work"]
    if found["machine"]["device"] == "cpu":
        wanted = CPU_GOALS
    else:
        wanted = GPU_GOALS.get((work["name"], work["batch"], work["length"]), ())
    measured = [goal for goal in wanted if rows.keys() >= set(goal.of)]
    return [(goal, goal.measure(*(rows[name] for name in goal.of))) for goal in measured]

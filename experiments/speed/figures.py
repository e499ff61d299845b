"""From what was measured to what is told: the whole run's step, ratios, use of the machine."""

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
    """A contender's steps: the seconds of every turn's, the FLOPs of one, the peak of memory."""

    turns: list[float]
    flops: float
    memory: float


def rows_of(found: Found) -> dict[str, Row]:
    """What was measured of the contenders that ran, and the whole run's step made of it."""
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
    """The mean step of a run, turn by turn."""
    pairs = zip(scored.turns, unscored.turns, strict=True)
    turns = [share * s + (1 - share) * u for s, u in pairs]
    flops = share * scored.flops + (1 - share) * unscored.flops
    return Row(turns, flops, max(scored.memory, unscored.memory))


def ratio(row: Row, other: Row) -> float:
    """How many times as long as the other's a step takes: the median of the turns' own ratios."""
    return median(a / b for a, b in zip(row.turns, other.turns, strict=True))


def quartiles(values: list[float]) -> tuple[float, float]:
    """The first and the third."""
    low, _, high = quantiles(values, n=4)
    return low, high


def measured_peak(found: Found) -> float:
    """FLOP/s of products of matrices, by the faster of the two."""
    return max(peaks(found).values())


def peaks(found: Found) -> dict[str, float]:
    """FLOP/s of products of matrices, by framework: the median of the turns."""
    rows = {name: found["rows"][name] for name in (JAX_PEAK, TORCH_PEAK)}
    return {name: row["last"]["flops"] / median(row["turns"]) for name, row in rows.items()}


def stated_peak(found: Found) -> float | None:
    """FLOP/s by the maker's datasheet, if there is such a thing."""
    return datasheet_peak(found["machine"]["device"], found["work"]["dtype"])


def run_in_few_steps(found: Found) -> float | None:
    """The mean step of the run that was really run, over LoRA's beside it."""
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
        """Whether it holds."""
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
    """In FLOPs of the formula, as MFU has it."""
    return row.flops / median(row.turns) / 1e12


def _unscored(text: str, measure: Callable[[Row], float], bound: float) -> Goal:
    return Goal(f"an unscored step: {text}", (UNSCORED,), measure, bound, is_at_most=False)


def _thousand_tokens(count: int) -> Callable[[Row], float]:
    """Thousands of tokens a second, where a step has so many."""
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
"""Of an H200, in bfloat16."""


def goals(found: Found) -> list[tuple[Goal, float]]:
    """What is asked of this machine and work, as far as it was measured, and what it came to."""
    rows, work = rows_of(found), found["work"]
    if found["machine"]["device"] == "cpu":
        wanted = CPU_GOALS
    else:
        wanted = GPU_GOALS.get((work["name"], work["batch"], work["length"]), ())
    measured = [goal for goal in wanted if rows.keys() >= set(goal.of)]
    return [(goal, goal.measure(*(rows[name] for name in goal.of))) for goal in measured]

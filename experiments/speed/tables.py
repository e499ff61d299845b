"""Tables of the figures in Markdown, and their place in a README."""

import re
from statistics import median
from typing import Any

from contenders import JAX_PEAK, LORA, PEFT_LORA, TORCH_PEAK
from figures import (
    Row,
    goals,
    peaks,
    quartiles,
    ratio,
    rows_of,
    run_in_few_steps,
    stated_peak,
)

from increlora_jax.errors import InputError

Found = dict[str, Any]
MIB = 2**20


def render(found: Found) -> str:
    """Return all tables of one command."""
    parts = [_describe(found), _speeds(found), _starts(found), _goals(found), *_failures(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_into(text: str, name: str, content: str) -> str:
    """Put `content` between the marks `<!-- results: NAME -->` and `<!-- end -->` of a text.

    Raises:
        InputError: If the text has no such marks.
    """
    mark = f"<!-- results: {name} -->"
    place = re.compile(rf"{re.escape(mark)}\n.*?<!-- end -->", re.DOTALL)
    if not place.search(text):
        raise InputError(
            f"README.md has no lines {mark} and <!-- end -->: add them where results go"
        )
    return place.sub(lambda _: f"{mark}\n{content}<!-- end -->", text)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None) -> str:
    """Format about three figures; a dash for a missing value."""
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def _describe(found: Found) -> str:
    return "\n\n".join([_describe_work(found), _describe_run(found), _describe_peaks(found)])


def _describe_work(found: Found) -> str:
    work, machine = found["work"], found["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    return (
        f"**{work['name']}**, {work['batch']} × {work['length']} tokens, {work['dtype']}, "
        f"{work['modules']} adapted modules, rank {work['rank']}, LoRA dropout "
        f"{work['lora_dropout']:g}; {machine['device']}, {machine['cores']} cores; Python "
        f"{machine['python']}, {versions}; {found['turns']} turns of {found['steps_a_turn']} steps"
        f"{_describe_choices(work)}."
    )


def _describe_choices(work: dict[str, Any]) -> str:
    """Return the given flags that a bench does not need."""
    usual = {"remat": "none", "attn_implementation": "xla"}
    flags = [f"{name} {work[name]}" for name, value in usual.items() if work[name] != value]
    return "".join(f", --{flag.replace('_', '-')}" for flag in flags)


def _describe_run(found: Found) -> str:
    share, few = found["scored_share"], run_in_few_steps(found)
    ran = f" Run in few steps, its mean step took {few:.3f} × that of our LoRA." if few else ""
    return (
        f"The whole run: {found['plan']}. {100 * share['default']:.1f} % of its steps are scored "
        f"by default; were all up to the last round, {100 * share['every step']:.1f} %.{ran}"
    )


def _describe_peaks(found: Found) -> str:
    peak, stated = peaks(found), stated_peak(found)
    return (
        f"Products of square matrices: {number(peak[JAX_PEAK] / 1e12)} TFLOP/s by XLA, "
        f"{number(peak[TORCH_PEAK] / 1e12)} by PyTorch; the datasheet: "
        f"{number(stated / 1e12) if stated else 'none for this device and dtype'}."
    )


def _speeds(found: Found) -> str:
    rows = rows_of(found)
    head = ["contender", "ms a step", "quartiles", "÷ our LoRA", "÷ PEFT's LoRA", "tokens/s"]
    head += ["GFLOP", "floor ms", "MFU, measured peak", "MFU, datasheet"]
    return markdown(head, [[name, *_speed(found, row, rows)] for name, row in rows.items()])


def _speed(found: Found, row: Row, rows: dict[str, Row]) -> list[str]:
    seconds, low_high = median(row.turns), quartiles(row.turns)
    tokens = found["work"]["batch"] * found["work"]["length"]
    measured, stated = max(peaks(found).values()), stated_peak(found)
    compared = [ratio(row, rows[name]) if name in rows else None for name in (LORA, PEFT_LORA)]
    return [
        number(1e3 * seconds),
        " to ".join(number(1e3 * value) for value in low_high),
        *(number(value) for value in compared),
        number(tokens / seconds),
        number(row.flops / 1e9),
        number(1e3 * row.flops / measured),
        f"{100 * row.flops / seconds / measured:.0f} %",
        f"{100 * row.flops / seconds / stated:.0f} %" if stated else "–",
    ]


def _starts(found: Found) -> str:
    head = ["contender", "peak memory MiB", "of it after imports", "compile s"]
    head += ["first step s, nothing cached", "first step s, cached"]
    rows = {name: row for name, row in found["rows"].items() if "flops" in row and "last" in row}
    return markdown(head, [[name, *_start(row)] for name, row in rows.items()])


def _start(row: dict[str, Any]) -> list[str]:
    memory, cached, cold = row["last"]["memory"], row["cached"], row.get("cold", {})
    return [
        number(memory / MIB),
        number((memory - cached["imports"]) / MIB),
        number(cold.get("compile")),
        number(cold.get("first_step")),
        number(cached["first_step"]),
    ]


def _goals(found: Found) -> str:
    rows = [
        [
            goal.text,
            f"{value:.2f}",
            f"{'≤' if goal.is_at_most else '≥'} {goal.bound:g}",
            "yes" if goal.is_met(value) else "**no**",
        ]
        for goal, value in goals(found)
    ]
    return markdown(["asked for", "measured", "wanted", "met"], rows) if rows else ""


def _failures(found: Found) -> list[str]:
    failed = {name: row["failure"] for name, row in found["rows"].items() if "failure" in row}
    return [f"{name} does not run here: `{reason}`" for name, reason in failed.items()]

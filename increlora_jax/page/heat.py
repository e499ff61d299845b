"""Heat maps of modules: rows are layers, columns are kinds of module."""

import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from increlora_jax.page.numbers import format_number
from increlora_jax.page.parts import HeatMap

_NUMBERED = re.compile(r"(?P<stack>(?:[^.]+\.)*?)(?P<layer>\d+)\.(?P<kind>.+)")
HOT = 0.61
"""Share of the highest value from which a cell's number has the other color.

With the colors of `page.css`, every number has a contrast of at least 4.5 in light and dark.
"""


class Row(NamedTuple):
    """A row of a heat map: its words, and its modules by column; a lone module fills the row."""

    label: str
    modules: tuple[str | None, ...]


class Grid(NamedTuple):
    """The places of modules: short names of the columns, their full names, and the rows."""

    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    rows: tuple[Row, ...]


def lay_out(modules: Sequence[str]) -> Grid:
    """Place modules: layer number down, kind across; modules without a number get their own rows.

    >>> lay_out(["h.0.attn.query", "h.0.mlp", "h.1.mlp", "pooler"]).columns
    ('query', 'mlp')
    """
    layers: dict[tuple[str, int], dict[str, str]] = {}
    alone = []
    for module in modules:
        match = _NUMBERED.fullmatch(module)
        if match is None:
            alone.append(Row(module, (module,)))
            continue
        layer = layers.setdefault((match["stack"], int(match["layer"])), {})
        layer[match["kind"]] = module
    kinds = tuple(dict.fromkeys(kind for layer in layers.values() for kind in layer))
    stacks = _shorten_stacks([stack for stack, _ in layers])
    rows = [
        Row(f"{stacks[stack]} {layer}", tuple(own.get(kind) for kind in kinds))
        for (stack, layer), own in layers.items()
    ]
    return Grid(shorten_names(kinds), kinds, (*rows, *alone))


def shorten_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the shortest ends of dotted names that no other name shares.

    >>> shorten_names(["self.query", "attention.output.dense", "output.dense"])
    ('query', 'attention.output.dense', 'output.dense')
    """
    return tuple(_shorten(name, names) for name in names)


def _shorten(name: str, names: Sequence[str]) -> str:
    words = name.split(".")
    for count in range(1, len(words)):
        end = ".".join(words[-count:])
        if not any(other != name and f".{other}".endswith(f".{end}") for other in names):
            return end
    return name


def _shorten_stacks(stacks: Sequence[str]) -> dict[str, str]:
    """Return the words for stacks of layers: "layer" for one, otherwise the name that differs."""
    different = list(dict.fromkeys(stacks))
    if len(different) == 1:
        return {different[0]: "layer"}
    split = [stack.rstrip(".").split(".") for stack in different]
    shared = 0
    while len({words[shared] if shared < len(words) else "" for words in split}) == 1:
        shared += 1
    return {
        stack: words[shared] if shared < len(words) else "layer"
        for stack, words in zip(different, split, strict=True)
    }


def count_rows(chart: HeatMap) -> int:
    """Return the rows of a heat map."""
    return len(lay_out(list(chart.frames[-1].values)).rows)


def draw_heat(chart: HeatMap, number: int) -> str:
    """Draw a heat map as a table, with a slider over its frames that a script brings to life."""
    grid = lay_out(list(chart.frames[-1].values))
    order = [module for row in grid.rows for module in row.modules if module is not None]
    highest = max((v for frame in chart.frames for v in frame.values.values()), default=0) or 1
    return "".join(
        [
            f'<div class="heat" id="heat-{number}">',
            _draw_slider(chart, number),
            '<div class="scroll" tabindex="0" role="group" '
            f'aria-label="{escape(chart.title)}"><table class="ranks">',
            *_draw_rows(grid, chart.frames[-1].values, highest),
            "</table></div>",
            _pack_frames(chart, order, highest),
            "</div>",
        ]
    )


def _draw_slider(chart: HeatMap, number: int) -> str:
    last, label = len(chart.frames) - 1, escape(chart.frames[-1].label)
    slider = (
        f'<input type="range" min="0" max="{last}" value="{last}" step="1" hidden '
        f'aria-label="growth round" aria-valuetext="{label}">'
    )
    return (
        f'<div class="control">{slider if last else ""}'
        f'<output for="heat-{number}" aria-live="polite">{label}</output></div>'
    )


def _draw_rows(grid: Grid, values: dict[str, float], highest: float) -> Iterator[str]:
    if grid.columns:
        yield '<thead><tr><th scope="col"><span class="unseen">layer</span></th>'
        for column, kind in zip(grid.columns, grid.kinds, strict=True):
            yield (
                f'<th scope="col" title="{escape(kind)}"><span class="upright">'
                f"{escape(column)}</span></th>"
            )
        yield "</tr></thead>"
    yield "<tbody>"
    for row in grid.rows:
        yield f'<tr><th scope="row">{escape(row.label)}</th>'
        is_alone = len(row.modules) == 1 and row.modules[0] == row.label
        span = f' colspan="{max(1, len(grid.columns))}"' if is_alone else ""
        for module in row.modules:
            if module is None:
                yield "<td></td>"
                continue
            share = values.get(module, 0) / highest
            heat = " hot" if share >= HOT else ""
            yield (
                f'<td class="cell{heat}"{span} style="--v:{share:.3f}" '
                f'title="{escape(module)}">{format_rank(values.get(module, 0))}</td>'
            )
        yield "</tr>"
    yield "</tbody>"


def format_rank(rank: float) -> str:
    """Return a rank's digits; a mean of ranks has one digit behind the point."""
    return f"{rank:.0f}" if rank == round(rank) else f"{rank:.1f}"


def _pack_frames(chart: HeatMap, order: Sequence[str], highest: float) -> str:
    """Return the frames as JSON for the script, safe within an HTML page."""
    frames = [
        {"label": frame.label, "ranks": [round(frame.values.get(m, 0), 2) for m in order]}
        for frame in chart.frames
    ]
    packed = json.dumps({"highest": highest, "hot": HOT, "frames": frames}, separators=(",", ":"))
    for sign in "<>&":
        packed = packed.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json">{packed}</script>'


def _format_total(total: float) -> str:
    return format_number(round(total)) if total == round(total) else f"{total:,.1f}"


def describe_frame(step: int | None, total: float, budget: float | None) -> str:
    """Return the words for the ranks after a step: "step 120 · total rank 52 of 72"."""
    place = "before growth" if step is None else f"step {format_number(step)}"
    goal = "" if budget is None else f" of {format_number(budget)}"
    return f"{place} · total rank {_format_total(total)}{goal}"

"""Charts as SVG: curves over steps, and bars."""

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from increlora_jax.page.numbers import (
    flatten_points,
    format_number,
    format_tick,
    list_decades,
    list_ticks,
    shorten,
)
from increlora_jax.page.parts import COLORS, BarChart, Line, LineChart, Point

WIDTH, HEIGHT = 440, 260
TOP, RIGHT, BOTTOM = 30, 22, 38
LETTER = 7.7
"""Width of a digit at the font size of ticks, in a wide font."""

RUG = 30
"""Height of the rows of ticks for the rounds of single runs."""

DOTS = 40
"""Curves of at most this many points may have dots."""

BAR, GAP = 16, 22
"""Heights of a bar and of the words above it."""


class Axis(NamedTuple):
    """An axis: its ends, ticks and the place of a value on the drawing."""

    ticks: list[float]
    words: list[str]
    place: Callable[[float], float]


def make_axis(ticks: list[float], low: float, high: float, *, ends: tuple[float, float]) -> Axis:
    """Return a linear axis.

    Args:
        ticks: the round numbers; those outside of the axis are left out.
        low: the value at its first end.
        high: the value at its other end.
        ends: the places of both ends.
    """
    start, stop = ends
    shown = [tick for tick in ticks if low - 1e-9 <= tick <= high * (1 + 1e-12) + 1e-12]
    step = ticks[1] - ticks[0]

    def place(value: float) -> float:
        return start + (value - low) / ((high - low) or 1.0) * (stop - start)

    return Axis(shown, [format_tick(tick, step) for tick in shown], place)


def draw_lines(chart: LineChart) -> str:
    """Draw curves as an SVG."""
    across, up = axes_of(chart)
    name = f"{chart.title}, {chart.unit} by {chart.x_unit}"
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">',
        f"<title>{escape(name)}</title>",
        *_draw_axes(chart, across, up),
        *_draw_marks(chart, across),
        *(piece for line in chart.lines for piece in _draw_line(line, across, up)),
        "</svg>",
    ]
    return "".join(parts)


def axes_of(chart: LineChart) -> tuple[Axis, Axis]:
    """Return both axes of a chart, wide enough for all of its curves and bands."""
    numbers = flatten_points([line.points for line in chart.lines])
    edges = [(x, y) for line in chart.lines for x, *ys in line.band for y in ys]
    xs, ys = zip(*(numbers + edges), strict=True) if numbers else ((0.0, 1.0), (0.0, 1.0))
    low, high = min(ys), max(ys)
    if chart.is_log:
        positive = [y for y in ys if y > 0] or [1.0]
        up = _log_axis(list_decades(min(positive), max(positive)))
        left = _left(up.words)
    else:
        ticks = list_ticks(min(low, 0.0) if chart.has_zero else low, high)
        up = make_axis(ticks, ticks[0], ticks[-1], ends=(HEIGHT - BOTTOM, TOP))
        left = _left(up.words)
    places = [x for marks in chart.marks for x in marks.places]
    first, last = min(0.0, *xs), max(1.0, *xs, *places)
    across = make_axis(list_ticks(first, last), first, last, ends=(left, WIDTH - RIGHT))
    return across, up


def _log_axis(decades: list[float]) -> Axis:
    low, high = math.log10(decades[0]), math.log10(decades[-1])

    def place(value: float) -> float:
        share = (math.log10(value) - low) / (high - low)
        return HEIGHT - BOTTOM + share * (TOP - HEIGHT + BOTTOM)

    return Axis(decades, [f"1e{round(math.log10(value))}" for value in decades], place)


def _left(words: Sequence[str]) -> float:
    return 12 + LETTER * max(map(len, words))


def _draw_axes(chart: LineChart, across: Axis, up: Axis) -> Iterator[str]:
    left, bottom = _left(up.words), HEIGHT - BOTTOM
    yield f'<text class="unit" x="2" y="14">{escape(chart.unit)}</text>'
    for tick, word in zip(up.ticks, up.words, strict=True):
        y = up.place(tick)
        yield f'<path class="grid" d="M{left:.1f} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text class="tick end" x="{left - 6:.1f}" y="{y + 4:.1f}">{word}</text>'
    for tick, word in zip(across.ticks, across.words, strict=True):
        x = across.place(tick)
        yield f'<path class="axis" d="M{x:.1f} {bottom}v4"/>'
        yield f'<text class="tick middle" x="{x:.1f}" y="{bottom + 17}">{word}</text>'
    yield f'<path class="axis" d="M{left:.1f} {bottom}H{WIDTH - RIGHT}"/>'
    yield (
        f'<text class="unit end" x="{WIDTH - RIGHT}" y="{HEIGHT - 5}">{escape(chart.x_unit)}</text>'
    )


def _draw_marks(chart: LineChart, across: Axis) -> Iterator[str]:
    """Draw the marks of all curves as lines, and those of single curves as rows of ticks."""
    pitch = min(5.0, RUG / max(1, len(chart.marks)))
    for row, marks in enumerate(chart.marks):
        top, bottom = float(TOP), float(HEIGHT - BOTTOM)
        if marks.color is not None:
            top = TOP - 10 + pitch * row
            bottom = top + pitch - 1
        color = "" if marks.color is None else f" {color_class(marks.color)}"
        path = "".join(f"M{across.place(x):.1f} {top:.1f}V{bottom:.1f}" for x in marks.places)
        yield f'<path class="mark{color}" d="{path}"/>'


def _draw_line(line: Line, across: Axis, up: Axis) -> Iterator[str]:
    color = color_class(line.color)
    if line.band:
        upper = [f"{across.place(x):.1f} {up.place(high):.1f}" for x, _, high in line.band]
        lower = [f"{across.place(x):.1f} {up.place(low):.1f}" for x, low, _ in line.band]
        yield f'<path class="band {color}" d="M{"L".join(upper + lower[::-1])}Z"/>'
    points = shorten(line.points)
    path = trace_path(points, across.place, up.place)
    label = f"<title>{escape(line.label)}</title>" if line.label else ""
    yield f'<path class="line {line.style} {color}" d="{path}">{label}</path>'
    if line.has_dots and len(points) <= DOTS:
        for x, y in points:
            if y is not None and _can_place(y, up):
                said = f"{line.label} · {format_number(x)}: {format_number(y)}"
                yield (
                    f'<circle class="dot {color}" r="2.2" cx="{across.place(x):.1f}" '
                    f'cy="{up.place(y):.1f}"><title>{escape(said)}</title></circle>'
                )


def trace_path(
    points: Sequence[Point], across: Callable[[float], float], up: Callable[[float], float]
) -> str:
    """Return the path of a curve; a gap lifts the pen, and a point between gaps is a dot."""
    strokes: list[list[str]] = [[]]
    for x, y in points:
        place = _place(y, up)
        if place is None:
            strokes.append([])
        else:
            strokes[-1].append(f"{across(x):.1f} {place:.1f}")
    return "".join(
        f"M{'L'.join(stroke)}" + ("h0" if len(stroke) == 1 else "") for stroke in strokes if stroke
    )


def _place(y: float | None, up: Callable[[float], float]) -> float | None:
    try:
        return None if y is None or not math.isfinite(y) else up(y)
    except ValueError:  # a logarithm of 0
        return None


def _can_place(y: float, up: Axis) -> bool:
    return _place(y, up.place) is not None


def color_class(color: int) -> str:
    """Return the classes of a color of the palette; the colors repeat dashed."""
    return f"c{color % COLORS}" + (" again" if color >= COLORS else "")


def draw_bars(chart: BarChart) -> str:
    """Draw horizontal bars as an SVG, with the words above each bar and its value behind."""
    longest = max((bar.value for bar in chart.bars), default=0.0) or 1.0
    height = len(chart.bars) * (BAR + GAP) + 6
    name = f"{chart.title}, {chart.unit}"
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name)}">',
        f"<title>{escape(name)}</title>",
    ]
    for row, bar in enumerate(chart.bars):
        y = row * (BAR + GAP) + GAP - 4
        value = f"{format_number(bar.value)} {chart.unit}"
        width = max(1.0, bar.value / longest * (WIDTH - 4))
        parts += [
            f'<text class="tick" x="2" y="{y - 5}">{escape(bar.label)}</text>',
            f'<text class="tick end strong" x="{WIDTH - 2}" y="{y - 5}">{escape(value)}</text>',
            f'<rect class="bar {color_class(bar.color)}" x="2" y="{y}" width="{width:.1f}" '
            f'height="{BAR - 4}" rx="1.5"/>',
        ]
    return "".join([*parts, "</svg>"])

"""Charts as PNG files, drawn with matplotlib."""

import math
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from increlora_jax.errors import InputError
from increlora_jax.page.heat import format_rank, lay_out
from increlora_jax.page.numbers import format_number, shorten
from increlora_jax.page.parts import COLORS, BarChart, HeatMap, Line, LineChart, Page

Drawing = LineChart | BarChart | HeatMap

PALETTE = (
    "#0072b2", "#c75000", "#00805e", "#a8508a", "#8a6d00", "#3a8fc9", "#5b4bb5", "#4d5560",
)  # fmt: skip
"""The colors of `page.css` on a light ground."""

SOFT, DOTS_PER_INCH = "#5b626c", 150
_STYLES: dict[str, dict[str, Any]] = {
    "plain": {"linewidth": 1.6},
    "faint": {"linewidth": 0.8, "alpha": 0.3},
    "thin": {"linewidth": 0.8, "alpha": 0.7},
    "dashed": {"linewidth": 1.1, "linestyle": "--"},
    "muted": {"linewidth": 0.7, "alpha": 0.35, "color": SOFT},
}


def check_drawing() -> None:
    """Check that matplotlib is installed.

    Raises:
        InputError: If it is not.
    """
    if find_spec("matplotlib") is None:
        raise InputError(
            "--png: matplotlib is not installed. Install it: pip install 'increlora_jax[report]'"
        )


def list_drawings(page: Page) -> list[tuple[str, Drawing]]:
    """Return the charts of a page, each with the name of its file: "01-training-loss.png"."""
    parts = [
        part
        for section in page.sections
        for part in section.parts
        if isinstance(part, LineChart | BarChart | HeatMap)
    ]
    return [(f"{n:02}-{_name(part.title)}.png", part) for n, part in enumerate(parts, start=1)]


def _name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60]


def save_drawing(chart: Drawing, path: Path) -> None:
    """Draw a chart and write it as PNG; a heat map shows its last frame."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_size(chart), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(_literal(chart.title), loc="left", fontsize=11, wrap=True)
    match chart:
        case LineChart():
            _plot_lines(chart, axes)
        case BarChart():
            _plot_bars(chart, axes)
        case HeatMap():
            _plot_ranks(chart, axes)
    figure.savefig(path, format="png", dpi=DOTS_PER_INCH)


def _literal(words: str) -> str:
    """Return words in which matplotlib finds no formula."""
    return words.replace("$", r"\$")


def _size(chart: Drawing) -> tuple[float, float]:
    match chart:
        case BarChart():
            return 6.4, 1.0 + 0.35 * len(chart.bars)
        case HeatMap():
            grid = lay_out(list(chart.frames[-1].values))
            return 3.0 + 0.45 * len(grid.columns), 2.6 + 0.25 * len(grid.rows)
    return 6.4, 4.0


def _plot_lines(chart: LineChart, axes: Any) -> None:
    for line in chart.lines:
        _plot_line(line, axes)
    for marks in chart.marks:
        color = SOFT if marks.color is None else PALETTE[marks.color % COLORS]
        for number, place in enumerate(marks.places):
            label = chart.mark_label if number == 0 and marks.color is None else None
            axes.axvline(place, color=color, linewidth=0.7, linestyle=":", alpha=0.6, label=label)
    if chart.is_log:
        axes.set_yscale("log", nonpositive="mask")
    elif chart.has_zero:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(chart.x_unit)
    axes.set_ylabel(chart.unit)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.figure.legend(loc="outside lower left", fontsize=8, frameon=False)


def _plot_line(line: Line, axes: Any) -> None:
    color = PALETTE[line.color % COLORS]
    points = shorten(line.points)
    style = {"color": color, **_STYLES[line.style]}
    if line.color >= COLORS:
        style["linestyle"] = "--"
    heights = [float("nan") if y is None else y for _, y in points]
    label = _literal(line.label) if line.label else "_hidden"
    axes.plot([x for x, _ in points], heights, label=label, **style)
    if line.band:
        xs, lows, highs = zip(*line.band, strict=True)
        axes.fill_between(xs, lows, highs, color=color, alpha=0.16, linewidth=0)


def _plot_bars(chart: BarChart, axes: Any) -> None:
    names = [_literal(bar.label) for bar in chart.bars]
    colors = [PALETTE[bar.color % COLORS] for bar in chart.bars]
    drawn = axes.barh(range(len(names)), [bar.value for bar in chart.bars], color=colors)
    axes.set_yticks(range(len(names)), names)
    axes.bar_label(drawn, [f"{format_number(bar.value)} {chart.unit}" for bar in chart.bars],
                   padding=3, fontsize=8)  # fmt: skip
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(chart.unit)
    axes.spines[["top", "right"]].set_visible(False)


def _plot_ranks(chart: HeatMap, axes: Any) -> None:
    frame = chart.frames[-1]
    grid = lay_out(list(frame.values))
    width = max(1, len(grid.columns))
    cells = [
        [float("nan") if m is None else frame.values[m] for m in row.modules]
        + [float("nan")] * (width - len(row.modules))
        for row in grid.rows
    ]
    axes.imshow(cells, cmap="Blues", vmin=0, aspect="auto")
    for y, x, value in _numbers_in(cells):
        is_dark = value > 0.6 * max(frame.values.values())
        axes.text(x, y, format_rank(value), ha="center", va="center", fontsize=8,
                  color="white" if is_dark else "black")  # fmt: skip
    columns = [_literal(name) for name in grid.columns] or ["rank"]
    axes.set_xticks(range(width), columns, rotation=90)
    axes.set_yticks(range(len(grid.rows)), [_literal(row.label) for row in grid.rows])
    axes.set_xlabel(_literal(frame.label), loc="left")


def _numbers_in(cells: list[list[float]]) -> Iterator[tuple[int, int, float]]:
    for y, row in enumerate(cells):
        for x, value in enumerate(row):
            if not math.isnan(value):
                yield y, x, value

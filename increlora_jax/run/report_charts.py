"""Charts of runs: curves with the spread over seeds, ranks, importance and learning rates."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from statistics import fmean
from typing import Any

from increlora_jax.page.heat import describe_frame
from increlora_jax.page.numbers import average
from increlora_jax.page.parts import (
    Bar,
    BarChart,
    Frame,
    HeatMap,
    Line,
    LineChart,
    Marks,
    Point,
)
from increlora_jax.run.history import Group, Growth, History, Points, is_growing
from increlora_jax.run.rates import list_rates

SMOOTHED = 100
"""Curves of at least this many steps are drawn as a running mean over 1/50 of their length."""

NAMED = 6
"""Modules of highest importance that have a color and a name."""

Take = Callable[[History], Points]


def draw_curves(
    groups: Sequence[Group],
    title: str,
    unit: str,
    take: Take,
    *,
    is_noisy: bool = False,
    has_dots: bool = False,
) -> LineChart | None:
    """Return the curves of one number of all runs, with growth rounds; None without numbers.

    Args:
        groups: the runs.
        title: of the chart.
        unit: of the number.
        take: the number by step, of one run.
        is_noisy: whether long curves are averaged; default False.
        has_dots: whether the points of short curves are marked; default False.
    """
    lines: list[Line] = []
    for color, group in enumerate(groups):
        lines += _draw_group(group, color, take, len(groups) == 1, is_noisy=is_noisy)
    if not lines:
        return None
    lines = [replace(line, has_dots=has_dots) for line in lines]
    steps = max(len(line.points) for line in lines)
    note = ""
    if is_noisy and steps >= SMOOTHED:
        note = "Mean of the last 1/50 of the steps; single steps are pale."
    return LineChart(title, unit, lines, mark_rounds(groups), note=note)


def _draw_group(
    group: Group, color: int, take: Take, is_alone: bool, *, is_noisy: bool
) -> Iterator[Line]:
    curves = [curve for member in group.members if (curve := list(take(member).items()))]
    if not curves:
        return
    window = max(1, max(map(len, curves)) // 50)
    is_averaged = is_noisy and max(map(len, curves)) >= SMOOTHED
    smooth = [average(curve, window) for curve in curves] if is_averaged else curves
    label = "" if is_alone and len(curves) == 1 else group.label
    if len(curves) > 1:
        label += f"{': ' if label else ''}mean and range of {len(curves)} runs"
        points, band = spread(smooth)
        yield Line(label, points, color, band)
        return
    if is_averaged:
        yield Line("", curves[0], color, style="faint")
    yield Line(label, smooth[0], color)


def spread(
    curves: Sequence[Sequence[Point]],
) -> tuple[list[Point], list[tuple[float, float, float]]]:
    """Return the mean curve and the (x, lowest, highest) band, at steps that all curves have.

    Where a value is not finite, the mean has a gap and the band has no point.
    """
    columns = [dict(curve) for curve in curves]
    mean: list[Point] = []
    band = []
    for x in columns[0]:
        if not all(x in column for column in columns):
            continue
        values = [v for column in columns if (v := column[x]) is not None]
        is_whole = len(values) == len(columns)
        mean.append((x, fmean(values) if is_whole else None))
        if is_whole:
            band.append((x, min(values), max(values)))
    return mean, _thin(band)


def _thin(band: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Return at most about 500 points of a band, each with the ends of its stretch."""
    size = len(band) // 500 + 1
    stretches = [band[start : start + size] for start in range(0, len(band), size)]
    return [
        (one[len(one) // 2][0], min(p[1] for p in one), max(p[2] for p in one)) for one in stretches
    ]


def mark_rounds(groups: Sequence[Group]) -> list[Marks]:
    """Return the growth rounds: for all runs if they are the same, otherwise for each run."""
    rounds = [_rounds_of(group.members[0]) for group in groups]
    if all(own == rounds[0] for own in rounds):
        return [Marks(rounds[0])]
    return [Marks(own, color) for color, own in enumerate(rounds) if own]


def _rounds_of(history: History) -> list[int]:
    return [growth.step for growth in history.growth[1:]]


def budget_of(history: History) -> int | None:
    """Return the final total rank: of the results, or by the settings of a growing run."""
    if "rank_budget" in history.results:
        budget: int | None = history.results["rank_budget"]
        return budget
    config, is_growing_method = history.config, history.config["method"] == "increlora"
    if not (history.growth and is_growing_method and config["growth"]):
        return None
    asked: int | None = config["target_total_rank"]
    return asked or round(config["target_rank"] * len(history.growth[0].ranks))


def steps_of(history: History) -> int | None:
    """Return the steps of the whole run, if they are known before its end."""
    results = history.results
    planned = results.get("total_steps", results.get("steps"))  # older results lack the plan
    steps: int | None = history.config["max_steps"] or planned
    return steps


def draw_total_rank(groups: Sequence[Group]) -> LineChart | None:
    """Return the total rank over steps against the budget."""
    chart = draw_curves(groups, "Total rank", "active slots", _total_ranks)
    if chart is None:
        return None
    budgets = {budget for group in groups if (budget := budget_of(group.members[0]))}
    limits = [_limit(f"budget {b}", b, chart.lines) for b in sorted(budgets)]
    return LineChart(chart.title, chart.unit, [*chart.lines, *limits], chart.marks, has_zero=True)


def _total_ranks(history: History) -> Points:
    """Return the total rank by step; nothing for a method without ranks."""
    ranks = history.train.get("total_rank", {})
    return ranks if any(ranks.values()) else {}


def _parameters(history: History) -> Points:
    known = [(g.step, g.parameters) for g in history.growth if g.parameters is not None]
    return _as_steps(history, known) if known else {}


def _as_steps(history: History, changes: Sequence[tuple[int, int]]) -> Points:
    """Return a number that changes after a round, with a corner before each change."""
    points: Points = {}
    for step, value in changes:
        if points:
            points.setdefault(step - 1, list(points.values())[-1])
        points[step] = value
    points[max(history.last_step - 1, *points)] = changes[-1][1]
    return points


def _limit(label: str, value: float, lines: Sequence[Line]) -> Line:
    xs = [x for line in lines for x, _ in line.points]
    return Line(label, [(min(xs), value), (max(xs), value)], 7, style="dashed")


def draw_parameters(groups: Sequence[Group]) -> LineChart | None:
    """Return the parameters of active slots over steps, against the budget spread evenly."""
    chart = draw_curves(groups, "Trainable parameters of adapters", "parameters", _parameters)
    if chart is None:
        return None
    evens = {even for group in groups if (even := _even_parameters(group.members[0]))}
    limits = [_limit(f"budget, the same rank everywhere: {e:,}", e, chart.lines) for e in
              sorted(evens)]  # fmt: skip
    note = "Without the head, which every run trains in full."
    return LineChart(
        chart.title, chart.unit, [*chart.lines, *limits], chart.marks, has_zero=True, note=note
    )


def _even_parameters(history: History) -> int | None:
    """Return the parameters if all modules had the same share of the budget."""
    budget = budget_of(history)
    if not history.growth or budget is None:
        return None
    first = history.growth[0]
    if len(set(first.ranks.values())) != 1 or not first.parameters:
        return None
    return round(first.parameters * budget / first.total_rank)


def draw_ranks(group: Group) -> HeatMap | None:
    """Return the ranks of all modules before growth and after each round, as means over seeds."""
    growths = [member.growth for member in group.members if member.growth]
    if not growths:
        return None
    steps = sorted({growth.step for own in growths for growth in own[1:]})
    frames = [_frame([own[0] for own in growths], None, group)]
    if not steps and budget_of(group.members[0]) is None:  # ranks that never change
        label = frames[0].label.rpartition(" · ")[2]
        frames = [Frame(label, frames[0].values)]
    frames += [_frame([_find_growth(own, step) for own in growths], step, group) for step in steps]
    note = f"Mean of {len(growths)} runs." if len(growths) > 1 else ""
    return HeatMap(f"Rank by layer and module: {group.label}", frames, note)


def _find_growth(growths: Sequence[Growth], step: int) -> Growth:
    """Return the last ranks up to a step; the first entry holds those before growth."""
    index = bisect_right([growth.step for growth in growths[1:]], step)
    return growths[index]


def _frame(growths: Sequence[Growth], step: int | None, group: Group) -> Frame:
    values = {
        module: fmean(growth.ranks.get(module, 0) for growth in growths)
        for module in growths[0].ranks
    }
    label = describe_frame(step, sum(values.values()), budget_of(group.members[0]))
    return Frame(label, values)


def draw_importance(group: Group) -> LineChart | None:
    """Return the importance of modules at each round; the highest have names."""
    curves = _importance_of(group.members)
    if not curves:
        return None
    order = sorted(curves, key=lambda name: -max(y or 0 for _, y in curves[name]))
    named = {name: color for color, name in enumerate(order[:NAMED])}
    lines = [Line("", curves[name], style="muted") for name in order[NAMED:]]
    if lines:
        rest = f"{len(lines)} other modules"
        lines[0] = Line(rest, lines[0].points, style="muted")
    start = _shared_start(order)
    lines += [
        Line(name[start:], curves[name], color, has_dots=True) for name, color in named.items()
    ]
    note = f"Mean of {len(group.members)} runs." if len(group.members) > 1 else ""
    title = f"Importance at each round: {group.label}"
    return LineChart(title, "importance, logarithmic", lines, is_log=True, note=note)


def _shared_start(names: Sequence[str]) -> int:
    """Return the length of the dotted words before the last that all names share."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = list(takewhile(lambda column: len(set(column)) == 1, columns))
    return sum(len(column[0]) + 1 for column in shared[:-1])


def _importance_of(members: Sequence[History]) -> dict[str, list[Point]]:
    found: dict[str, dict[int, list[float]]] = {}
    for member in members:
        for growth in member.growth:
            for module, value in growth.importance.items():
                found.setdefault(module, {}).setdefault(growth.step, []).append(value)
    return {
        module: [(step, fmean(values)) for step, values in sorted(steps.items())]
        for module, steps in found.items()
    }


def draw_rates(group: Group) -> LineChart | None:
    """Return the learning rate of the run and of the slots that each round activates."""
    history = group.members[0]
    steps, warmup = steps_of(history), history.config["warmup_steps"]
    title, unit = f"Learning rate by birth: {group.label}", "learning rate"
    if steps is None or not isinstance(warmup, int):
        if logged := list(history.train.get("learning_rate", {}).items()):
            return LineChart(title, unit, [Line("of the run", logged)])
        return None
    lines = list(_draw_births(history, history.config, steps))
    label = "of the run and the first slots" if lines else "of the run"
    own = Line(label, list_rates(history.config, steps, 0))
    return LineChart(title, unit, [*lines, own])


def _draw_births(history: History, config: Mapping[str, Any], steps: int) -> Iterator[Line]:
    if not (is_growing(history) and config["restart_warmup"]):
        return
    label = "of the slots of each round, from their birth"
    for step in _rounds_of(history):
        # λ of a slot is born on the step after its activation.
        yield Line(label, list_rates(config, steps, step + 1), 1, style="thin")
        label = ""


def draw_phases(groups: Sequence[Group]) -> list[BarChart]:
    """Return the time of each finished run by phase, the longest first."""
    charts = []
    for color, group in enumerate(groups):
        phases = group.results.get("seconds_by_phase", {})
        longest = sorted(phases.items(), key=lambda phase: -phase[1])
        bars = [Bar(name, seconds, color) for name, seconds in longest if seconds > 0]
        if bars and group.folder not in [one.folder for one in groups[:color]]:
            title = f"Time by phase: {group.folder.absolute().name}"
            charts.append(BarChart(title, "s", bars))
    return charts

"""Tables of runs: headline metrics, speed, configuration and environment."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from increlora_jax.page.numbers import format_number, format_seconds
from increlora_jax.page.parts import Figure, Figures, Table
from increlora_jax.run.history import Group, History
from increlora_jax.run.report_charts import budget_of, steps_of

NONE = "–"


def show_headline(groups: Sequence[Group]) -> Figures | Table:
    """Return the main numbers: side by side for one group, as a table for several."""
    if len(groups) == 1:
        pairs = _describe(groups[0])
        figures = [Figure(name, *_split_remark(words)) for name, words in pairs.items()]
        return Figures(figures)
    described = [_describe(group) for group in groups]
    names = list(dict.fromkeys(name for own in described for name in own))
    rows = [
        [group.label, *(_in_brackets(own.get(name, NONE)) for name in names)]
        for group, own in zip(groups, described, strict=True)
    ]
    return Table("Headline", ["run", *names], rows)


def _split_remark(words: str) -> tuple[str, str]:
    value, _, remark = words.partition("; ")
    return value, remark


def _in_brackets(words: str) -> str:
    value, remark = _split_remark(words)
    return f"{value} ({remark})" if remark else value


def _describe(group: Group) -> dict[str, str]:
    """Return the main numbers of a group in words; a remark follows a semicolon."""
    told = {"state": _say_state(group)}
    names = dict.fromkeys(name for member in group.members for name in member.dev)
    for name in names:
        last = [_last_of(member, name) for member in group.members]
        best = _best_of(group, name)
        told[f"{name} on dev"] = _say_values(last) + (f"; best evaluation {best}" if best else "")
    told |= _describe_ranks(group)
    return told


def _say_state(group: Group) -> str:
    steps = [member.last_step for member in group.members]
    goal = steps_of(group.members[0])
    of_all = "" if goal is None else f" of {format_number(goal)}"
    early = sum(member.is_stopped for member in group.members)
    how = f", {early} stopped early" if early and len(group.members) > 1 else ""
    if group.is_running:
        return f"unfinished; step {_say_range(steps)}{of_all}{how}"
    if early:
        how = how or ", stopped early"
        return f"finished; {_say_range(steps)}{of_all} steps{how}"
    return f"finished; {format_number(goal or min(steps))} steps"


def _last_of(history: History, name: str) -> float | None:
    """Return a metric of the last adapter, which may be the best one, or of the last evaluation."""
    if name in (metrics := history.results.get("metrics", {})):
        return float(metrics[name])
    values = list(history.dev.get(name, {}).values())
    return values[-1] if values else None


def _best_of(group: Group, name: str) -> str:
    found = [member.results.get("best_metrics", {}).get(name) for member in group.members]
    return _say_values(found) if all(value is not None for value in found) else ""


def _say_values(values: Sequence[float | None]) -> str:
    """Return a metric in words; over seeds as mean ± sample standard deviation."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        return "not finite"
    if len(values) == 1:
        return f"{finite[0]:.4f}"
    return f"{fmean(finite):.4f} ± {stdev(finite):.4f}"


def _describe_ranks(group: Group) -> dict[str, str]:
    history = group.members[0]
    told = {}
    if history.growth:
        budget = budget_of(history)
        totals = [
            member.results.get("total_rank", member.growth[-1].total_rank)
            for member in group.members
            if member.growth
        ]
        goal = "" if budget is None else f"; of a budget of {format_number(budget)}"
        told["total rank"] = _say_range(totals) + goal
    counts = [member.results.get("trainable_parameters", {}) for member in group.members]
    active = [count["active"] for count in counts if "active" in count]
    if not active:
        active = [p for member in group.members if member.growth
                  and (p := member.growth[-1].parameters) is not None]  # fmt: skip
    if active:
        head = counts[0].get("head")
        beside = f"; and {format_number(head)} trained in full" if head else ""
        told["adapter parameters"] = _say_range(active) + beside
    return told


def _say_range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return format_number(low) if low == high else f"{format_number(low)}–{format_number(high)}"


_SPEED: dict[str, Callable[[Any], str]] = {
    "seconds": format_seconds,
    "seconds_to_first_step": format_seconds,
    "train_tokens_per_second": lambda number: f"{number:,.0f}",
    "padding_share": lambda share: f"{100 * share:.1f} %",
}
_SPEED_NAMES = {
    "seconds": "time",
    "seconds_to_first_step": "until the first step",
    "train_tokens_per_second": "training tokens a second",
    "padding_share": "padding of training batches",
}


def show_speed(groups: Sequence[Group]) -> Table | None:
    """Return times, speed and padding of finished folders; None if no run has finished."""
    folders = _finished_folders(groups)
    rows = []
    for key, say in _SPEED.items():
        values = [results.get(key) for results in folders.values()]
        words = [NONE if value is None else say(value) for value in values]
        rows.append([_SPEED_NAMES[key], *words])
    return Table("Speed and padding", ["", *folders], rows) if folders else None


def _finished_folders(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    folders = {group.folder: group.results for group in groups if group.results}
    names = [folder.absolute().name for folder in folders]
    return {
        str(folder) if names.count(name) > 1 else name: results
        for (folder, results), name in zip(folders.items(), names, strict=True)
    }


def show_configuration(groups: Sequence[Group]) -> Table:
    """Return every setting of every group; settings that differ come first and are marked."""
    configs = [_join([member.config for member in group.members]) for group in groups]
    names = list(dict.fromkeys(name for config in configs for name in config))
    differing = [name for name in names if len({config.get(name) for config in configs}) > 1]
    order = [*differing, *(name for name in names if name not in differing)]
    rows = [[name, *(config.get(name, NONE) for config in configs)] for name in order]
    note = "Settings that differ between runs come first." if differing else ""
    header = ["setting", *(group.label for group in groups)]
    return Table("Configuration", header, rows, frozenset(range(len(differing))), note)


def _join(configs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the settings of a group in words, with all values of those that its seeds change."""
    return {
        name: ", ".join(dict.fromkeys(_say_setting(config[name]) for config in configs))
        for name in configs[0]
    }


def _say_setting(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def show_environment(groups: Sequence[Group]) -> Table | None:
    """Return versions and devices of finished folders; None if no run has finished."""
    folders = _finished_folders(groups)
    found = [{**r.get("versions", {}), **r.get("platform", {})} for r in folders.values()]
    names = list(dict.fromkeys(name for own in found for name in own))
    if not names:
        return None
    rows = [[name, *(_say_setting(own.get(name)) for own in found)] for name in names]
    marked = {number for number, row in enumerate(rows) if len(set(row[1:])) > 1}
    return Table("Environment", ["", *folders], rows, frozenset(marked))

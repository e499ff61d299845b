"""Tables and pictures of a study, from the lines of its results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl
from plan import HERE, Job, read_studies
from scipy import stats

mpl.use("Agg")
import matplotlib.pyplot as plt  # after the choice of the backend

CONFIDENCE = 0.95

PLACE = ("model", "task", "rank", "rows", "steps")
"""Fields that every variant of one table shares."""

Line = Mapping[str, Any]


def render(jobs: Sequence[Job], lines: Sequence[Line]) -> None:
    """Write results/STUDY.md and results/STUDY.png from the lines of today's jobs."""
    found = [_newest(job, lines) for job in jobs]
    held = [line for line in found if line is not None]
    if not held:
        return
    study = jobs[0].study
    name = study.removesuffix("-quick")
    content = read_studies()
    baseline = (content["defaults"] | content["studies"][name])["baseline"]
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in held:
        groups.setdefault(tuple(line[name] for name in PLACE), []).append(line)
    text = "\n".join(_table(place, group, baseline) for place, group in groups.items())
    missing = len(found) - len(held)
    if missing:
        text += f"\n{missing} of {len(found)} jobs are not done.\n"
    (HERE / "results" / f"{study}.md").write_text(text, encoding="utf-8")
    _draw(groups, HERE / "results" / f"{study}.png")


def _newest(job: Job, lines: Sequence[Line]) -> Line | None:
    return next((line for line in reversed(lines) if {**line, **job.key} == line), None)


def _table(place: tuple[Any, ...], group: Sequence[Line], baseline: str) -> str:
    base = next((line["values"] for line in group if line["variant"] == baseline), None)
    metric = group[0]["metric"]
    head = [
        f"**{_name(place)}**, {metric} on dev\n",
        f"| variant | mean ± sd | minus {baseline}, {CONFIDENCE:.0%} interval | chosen "
        "| parameters | training, s |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(_row(line, base, baseline) for line in group), ""])


def _name(place: tuple[Any, ...]) -> str:
    model, task, rank, rows, steps = place
    words = [model, task, f"rank {rank}", f"{rows} rows" if rows else None]
    return ", ".join([*filter(None, words), *([f"{steps} steps"] if steps else [])])


def _row(line: Line, base: Sequence[float] | None, baseline: str) -> str:
    values = line["values"]
    chosen = ", ".join(f"{name} {value:g}" for name, value in line["chosen"].items())
    difference = "" if base is None or line["variant"] == baseline else _difference(values, base)
    return (
        f"| {line['variant']} | {mean(values):.4f} ± {stdev(values):.4f} | {difference} | {chosen} "
        f"| {line['parameters']:,} | {line['training_seconds']:.0f} |"
    )


def _difference(values: Sequence[float], base: Sequence[float]) -> str:
    """Return the mean of the paired differences, and its interval by Student's t."""
    apart = [a - b for a, b in zip(values, base, strict=True)]
    error = stdev(apart) / len(apart) ** 0.5
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(apart) - 1)) * error
    return f"{mean(apart):+.4f} ({mean(apart) - half:+.4f} to {mean(apart) + half:+.4f})"


def _draw(groups: Mapping[tuple[Any, ...], Sequence[Line]], path: Path) -> None:
    most = max(map(len, groups.values()))
    size = (3.2 * len(groups) + 1.5, 0.32 * most + 1.6)
    figure, axes = plt.subplots(
        1, len(groups), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (place_of_group, group) in zip(axes[0], groups.items(), strict=True):
        names = [line["variant"] for line in group]
        for place, line in enumerate(group):
            axis.plot(line["values"], [place] * len(line["values"]), "o", color="#9aa5b1", ms=4)
            axis.plot([mean(line["values"])], [place], "|", color="#1f4e79", ms=14, mew=2)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(_name(place_of_group), fontsize=10)
        axis.set_xlabel(group[0]["metric"])
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].invert_yaxis()
    figure.savefig(path, dpi=120)
    plt.close(figure)

"""Histories of runs, read from their folders without JAX; a run may still be training."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from increlora_jax.errors import InputError
from increlora_jax.files.bounded import read_bounded
from increlora_jax.files.json_object import read_json_object
from increlora_jax.files.kinds import check_keys
from increlora_jax.run.command_line import read_run
from increlora_jax.run.sweep import Member, members_of
from increlora_jax.training.run_log import GROWTH, METRICS_FILE, STOPPED

CONFIG, RESULTS = "config.yaml", "results.json"  # as in `folder`, which imports JAX
MAX_BYTES = 1 << 29

Points = dict[int, float | None]
"""A number by step; None stands for one that is not finite."""

_NUMBERS = (float, int, type(None))
_RESULT_KINDS: dict[str, Any] = {
    "metrics": dict[str, float],
    "best_metrics": dict[str, float],
    "rank_budget": int | None,
    "total_rank": int,
    "ranks": dict[str, int],
    "rounds": dict[int, dict[str, int]],
    "trainable_parameters": dict[str, int],
    "seconds": float,
    "seconds_by_phase": dict[str, float],
    "seconds_to_first_step": float,
    "train_tokens_per_second": float,
    "padding_share": float | None,
    "steps": int,
    "total_steps": int,
    "adapter_step": int,
    "task": str,
    "method": str,
    "model": str,
    "summary": str,
    "versions": dict[str, str],
    "platform": dict[str, str | int | bool],
}
"""Kinds of the results that a report reads; results of older versions lack some keys."""


@dataclass(frozen=True)
class Growth:
    """Ranks after a step.

    Attributes:
        step: of the round; 0 also stands for the ranks before training.
        ranks: by module, in module order.
        importance: by module; empty if no importance was recorded.
        parameters: of the active slots; None if unknown.
    """

    step: int
    ranks: dict[str, int]
    importance: dict[str, float]
    parameters: int | None

    @property
    def total_rank(self) -> int:
        """Sum of the ranks."""
        return sum(self.ranks.values())


@dataclass(frozen=True)
class History:
    """Record of one run.

    Attributes:
        name: of its folder.
        config: its settings by name.
        results: of the finished run; empty while the run trains.
        train: numbers of training steps by name.
        dev: metrics on dev by name.
        growth: ranks before training and after each round; empty for a method without ranks.
        is_stopped: whether the run has stopped early.
    """

    name: str
    config: dict[str, Any]
    results: dict[str, Any]
    train: dict[str, Points]
    dev: dict[str, Points]
    growth: tuple[Growth, ...]
    is_stopped: bool = False

    @property
    def last_step(self) -> int:
        """Number of steps up to the last recorded loss."""
        return max(self.train.get("loss", {}), default=-1) + 1


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, drawn as one curve; or a single run.

    Attributes:
        label: its name in legends.
        folder: of the run, or of all runs that train together.
        members: the runs, at least one.
        results: of the folder; empty while the runs train.
    """

    label: str
    folder: Path
    members: tuple[History, ...]
    results: dict[str, Any]

    @property
    def is_running(self) -> bool:
        """True while the results are missing."""
        return not self.results


def read_groups(folders: Sequence[Path]) -> tuple[Group, ...]:
    """Read the runs of folders; each variant of a sweep is a group of its own.

    Raises:
        InputError: If a folder holds no run, or one of its files is damaged.
    """
    return tuple(
        group
        for folder, label in zip(folders, _label_folders(folders), strict=True)
        for group in _read_folder(folder, label, is_alone=len(folders) == 1)
    )


def _label_folders(folders: Sequence[Path]) -> list[str]:
    """Return the folders' names, or their paths if two names are the same."""
    names = [folder.absolute().name or str(folder) for folder in folders]
    return [str(f) if names.count(n) > 1 else n for f, n in zip(folders, names, strict=True)]


def _read_folder(folder: Path, label: str, *, is_alone: bool) -> Iterator[Group]:
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"--run {folder}: no run is here ({CONFIG} is missing). Name the --output-dir of a "
            "training command"
        )
    results = _read_results(folder)
    variants: dict[str, list[Member]] = {}
    for member in members_of(read_run(folder / CONFIG)):
        variants.setdefault(member.variant, []).append(member)
    for variant, members in variants.items():
        own = variant if is_alone else f"{label}: {variant}"
        histories = tuple(_read_history(folder / m.name, m, label) for m in members)
        yield Group(own if variant else label, folder, histories, results)


def _read_history(folder: Path, member: Member, label: str) -> History:
    results = _read_results(folder)
    numbers: dict[str, dict[str, Points]] = {"train": {}, "dev": {}}
    growth = []
    for where, line in _read_lines(folder / METRICS_FILE, is_finished=bool(results)):
        step, split = line.pop("step", None), line.pop("split", None)
        if type(step) is not int or not isinstance(split, str):
            raise InputError(f"{where}: has no step or no split. {_MEND}")
        if split == STOPPED:
            numbers[STOPPED] = {}
        if split == GROWTH:
            growth.append(_take_growth(where, step, line))
            continue
        for name, value in line.items():
            if type(value) not in _NUMBERS:
                raise InputError(f"{where}: {name} is {value!r}, not a number. {_MEND}")
            points = numbers.setdefault(split, {}).setdefault(name, {})
            points[step] = value if value is not None and math.isfinite(value) else None
    return History(
        member.name or label,
        member.config.flat(),
        results,
        numbers["train"],
        numbers["dev"],
        tuple(growth) or _rebuild_growth(results),
        STOPPED in numbers,
    )


_MEND = "Restore the file, or train again"


def _read_lines(path: Path, *, is_finished: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line with its place; skip the torn last line of a run that still trains."""
    if not path.exists():
        return
    lines = read_bounded(path, MAX_BYTES).split(b"\n")
    for number, raw in enumerate(lines, start=1):
        is_last = number == len(lines)
        if is_last and (not raw or not is_finished):
            return
        try:
            line = json.loads(raw)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise InputError(f"{path}:{number}: not a line of metrics. {_MEND}")
        yield f"{path}:{number}", line


def _take_growth(where: str, step: int, line: Mapping[str, Any]) -> Growth:
    ranks, importance = line.get("ranks"), line.get("importance", {})
    parameters = line.get("parameters")
    is_sound = _holds(ranks, (int,)) and _holds(importance, _NUMBERS) and bool(ranks)
    if not is_sound or type(parameters) not in (int, type(None)):
        raise InputError(f"{where}: ranks, importance or parameters are not numbers. {_MEND}")
    finite = {n: v for n, v in importance.items() if v is not None and math.isfinite(v)}
    return Growth(step, ranks or {}, finite, parameters)


def _holds(values: Any, kinds: tuple[type, ...]) -> bool:
    """Return whether an object of JSON has values of these types alone."""
    return isinstance(values, dict) and all(type(value) in kinds for value in values.values())


def _rebuild_growth(results: Mapping[str, Any]) -> tuple[Growth, ...]:
    """Return the ranks of a run of an older version, from its last ranks backwards."""
    ranks, found = dict(results.get("ranks", {})), []
    rounds = sorted((int(step), grown) for step, grown in results.get("rounds", {}).items())
    for step, grown in reversed(rounds):
        found.append(Growth(step, dict(ranks), {}, None))
        for name, slots in grown.items():
            ranks[name] = ranks.get(name, 0) - slots
    return (Growth(0, ranks, {}, None), *reversed(found)) if ranks else ()


def _read_results(folder: Path) -> dict[str, Any]:
    path = folder / RESULTS
    if not path.exists():
        return {}
    results = read_json_object(path, allow_nan=True)
    if not {"metrics", "summary"} & results.keys():
        raise InputError(f"{path}: neither metrics nor a summary is here. {_MEND}")
    kinds = {name: kind for name, kind in _RESULT_KINDS.items() if name in results}
    check_keys(path, results, kinds, may_have_others=True)
    return results


def is_growing(history: History) -> bool:
    """Return whether ranks have changed during a run."""
    return any(one.ranks != two.ranks for one, two in pairwise(history.growth))

"""The jobs of a study, from `studies.yaml`: one job tunes one variant on one task."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
GLUE = {
    "mnli": ("MNLI", "accuracy"), "sst2": ("SST-2", "accuracy"), "cola": ("CoLA", "matthews"),
    "qqp": ("QQP", "accuracy"), "qnli": ("QNLI", "accuracy"), "rte": ("RTE", "accuracy"),
    "mrpc": ("MRPC", "accuracy"), "stsb": ("STS-B", "spearmanr"),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One variant on one task.

    Attributes:
        study: Its name.
        model: The hub id of the base model; None if the command gives the model.
        task: The word for `--task`.
        told: The task's folder, metric, steps and length.
        rank: LoRA's rank at the budget.
        budget: Adapter parameters; None if the rank itself is the budget.
        rows: Rows of the training file; 0 for all.
        variant: Its name.
        flags: The variant's own flags.
        pattern_of: The variant whose ranks this one replays; None if it has its own.
        tuning_seed: The seed of every trial.
        seeds: Seeds of the runs that are reported, with the settings of the best trial.
        grid: Values to try, by flag.
        common: Flags of all variants.
    """

    study: str
    model: str | None
    task: str
    told: Mapping[str, Any]
    rank: int
    budget: int | None
    rows: int
    variant: str
    flags: Mapping[str, Any]
    pattern_of: str | None
    tuning_seed: int
    seeds: tuple[int, ...]
    grid: Mapping[str, tuple[float, ...]]
    common: Mapping[str, Any]

    @property
    def key(self) -> dict[str, Any]:
        """Return all that it is known by; a finished key is never trained again."""
        return {
            "study": self.study,
            "model": self.model,
            "task": self.task,
            "rank": self.rank,
            "rows": self.rows,
            "variant": self.variant,
            "tuning_seed": self.tuning_seed,
            "seeds": list(self.seeds),
            "grid": {name: list(values) for name, values in self.grid.items()},
            "flags": {**self.common, **self.flags},
            "steps": self.told.get("steps"),
        }

    @property
    def folder(self) -> str:
        """Return the name of its folder."""
        model = [self.model.split("/")[-1]] if self.model else []
        words = [self.task, self.rank, self.rows or "all", self.variant.replace(" ", "-")]
        return "-".join(map(str, [*model, *words]))

    def words(self) -> list[str]:
        """Return the flags of its method."""
        given = {"method": "increlora", **self.common, **self.flags}
        has_size = given["method"] not in ("bitfit", "head", "full", "lora-pattern")
        if has_size and self.budget is None:
            given["target-rank"] = self.rank
        elif has_size:
            given["match-budget"] = self.budget
        return [word for name, value in given.items() for word in _spell(name, value)]


def _spell(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


def read_studies() -> dict[str, Any]:
    """Return the content of `studies.yaml`."""
    content: dict[str, Any] = yaml.safe_load((HERE / "studies.yaml").read_text(encoding="utf-8"))
    return content


def plan_jobs(name: str, *, is_quick: bool) -> list[Job]:
    """Return the jobs of a study; those whose ranks another replays come first.

    Raises:
        SystemExit: If there is no such study.
    """
    content = read_studies()
    if name not in content["studies"]:
        raise SystemExit(f"no study {name!r}; there are {', '.join(content['studies'])}")
    study = content["defaults"] | content["studies"][name]
    if is_quick:
        study = study | content["quick"]
    known = study["tasks"] if is_quick else _tasks(content, study)
    models = [None] if is_quick else study.get("models", [None])
    rows = study["rows"]
    lengths = rows if isinstance(rows, dict) else dict.fromkeys(rows)
    return [
        Job(
            study=name + ("-quick" if is_quick else ""),
            model=model,
            task=task,
            told=known[task] | ({"steps": steps} if steps else {}),
            rank=rank,
            budget=budget,
            rows=rows,
            variant=variant,
            flags={flag: value for flag, value in flags.items() if flag != "pattern-of"},
            pattern_of=flags.get("pattern-of"),
            tuning_seed=study["tuning_seed"],
            seeds=tuple(study["seeds"]),
            grid={flag: tuple(values) for flag, values in study["grid"].items()},
            common=study["flags"],
        )
        for model in models
        for rank, budget in study["budgets"].items()
        for task in known
        for rows, steps in lengths.items()
        for variant, flags in study["variants"].items()
    ]


def _tasks(content: Mapping[str, Any], study: Mapping[str, Any]) -> dict[str, Any]:
    if study.get("is_recipe"):
        return {t: dict(zip(("folder", "metric"), GLUE[t], strict=True)) for t in study["tasks"]}
    return {task: content["tasks"][task] for task in study["tasks"]}

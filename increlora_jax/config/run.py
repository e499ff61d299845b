"""All settings of a run, and those that may differ between runs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_type_hints

from increlora_jax.config.groups import (
    AdapterConfig,
    BottleneckConfig,
    GrowthConfig,
    PatternConfig,
    PruningConfig,
    TaskConfig,
    TrainingConfig,
)
from increlora_jax.errors import InputError
from increlora_jax.methods.table import METHODS
from increlora_jax.values import Reference, flag_of, require

_LONGEST_NAME = 60
"""Longest part of a data folder's name within the name of a run's folder."""

LARGEST = 2**31 - 2
"""Largest whole number: steps are counted in 32 bits, and 2³¹ - 1 stands for "never"."""

FREE = frozenset(
    {
        "data_dir",
        "model",
        "model_revision",
        "model_subfolder",
        "output_dir",
        "eval_batch_size",
        "packing",
        "overwrite_output_dir",
        "resume",
        "save_steps",
        "save_total_limit",
        "keep_period",
        "max_skipped_steps",
        "remat",
        "scan_layers",
        "attn_implementation",
        "report",
        "report_to",
        "compilation_cache_dir",
        "init_adapter",
        "ignore_head",
        "distributed",
        "mesh",
    }
)
"""Settings that may change when a run is resumed: they affect only rounding and chance.

With another `mesh`, `scan_layers`, `attn_implementation` or `packing`, sums have another order.
Dropout also draws otherwise with another `packing`, and in the last layer of a classifier with
another `scan_layers`. A resumed run is bit for bit the same only if these are unchanged.
"""

VARIABLE = (
    "learning_rate", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "lora_plus_ratio", "lambda_lr_ratio", "lora_alpha", "reg_orth_coef", "beta1",
    "beta2",
)  # fmt: skip
"""Settings that may differ between runs that train together: they change no shape, plan or data."""


@dataclass(frozen=True)
class RunConfig:
    """The settings of a run, with a field for every group.

    Attributes:
        task: of the task, its data and the base model.
        adapter: of the method and the places of its adapters.
        growth: of growth.
        pruning: of adalora, elalora and flexlora.
        pattern: of lora-pattern.
        bottleneck: of houlsby and pfeiffer.
        training: of steps, optimizer, evaluation and output.
        unsaid: settings without a value of the user, which are fitted to the run and the model.

    >>> RunConfig(task=TaskConfig(task="mrpc")).output_dir
    'runs/mrpc-increlora-42'
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)
    pattern: PatternConfig = field(default_factory=PatternConfig)
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    unsaid: frozenset[str] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        """Check that every number is one to compute with, and that no text is blank."""
        for name, value in self.flat().items():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and not text.strip():
                    raise InputError(f"{flag_of(name)} {text!r} is blank. Fill it, or leave it out")
            if type(value) is float:
                require(isfinite(value), name, value, "finite")
            elif type(value) is int:
                require(value <= LARGEST, name, value, f"at most {LARGEST}")

    @property
    def groups(self) -> tuple[Any, ...]:
        """The groups of settings, in the order of `GROUPS`."""
        return tuple(getattr(self, name) for name in _GROUPS)

    def settled(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share, without model and data."""
        return {name: value for name, value in self.flat().items() if name not in FREE}

    def flat(self) -> dict[str, Any]:
        """Return all settings by name, as in `config.yaml`."""
        return {f.name: getattr(group, f.name) for group in self.groups for f in fields(group)}

    def changed(self, values: Mapping[str, Any]) -> "RunConfig":
        """Return the same configuration with other values of some settings, by name."""

        def change(group: Any) -> Any:
            own = {f.name: values[f.name] for f in fields(group) if f.name in values}
            return replace(group, **own)

        return replace(self, **{name: change(getattr(self, name)) for name in _GROUPS})

    @property
    def _data_name(self) -> list[str]:
        """Name of the data's folder for `--task text`, to separate data sets of one task."""
        task = self.task
        if task.task != "text" or task.data_dir is None:
            return []
        name = Path(os.path.realpath(task.data_dir)).name
        return [name[:_LONGEST_NAME]] if name else []

    @property
    def output_dir(self) -> str:
        """The run's folder."""
        training = self.training
        words = [
            self.task.task,
            *self._data_name,
            self.adapter.method.replace(":", "."),
            training.seeds or training.seed,
        ]
        default = "-".join(map(str, [*words, *(training.sweep or [])]))
        return training.output_dir or f"runs/{default}"


_GROUPS: dict[str, Any] = {
    f.name: f.default_factory for f in fields(RunConfig) if is_dataclass(f.default_factory)
}
GROUPS: Any = tuple(_GROUPS.values())

_literal: Any = Literal  # for words known only at run time
KINDS: dict[str, Any] = {
    name: kind
    for group in GROUPS
    for name, kind in get_type_hints(group).items()
    if name != "sections"
} | {"method": _literal[tuple(METHODS)] | Reference}
"""Annotations of all settings, by name."""

DEFAULTS: dict[str, Any] = RunConfig().flat()
"""Defaults of all settings, before a recipe changes them."""

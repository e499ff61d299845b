"""The description of a run in its adapter, and the run rebuilt from that alone.

`adapter_config.json` holds every setting that an evaluation depends on. `config.yaml` beside it
only says where model and data are: an edit there changes no score without a word.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from increlora_jax.config import FREE, GROUPS, KINDS, RunConfig, TrainingConfig
from increlora_jax.errors import InputError
from increlora_jax.files.kinds import check_keys
from increlora_jax.nn.adapter_files import CONFIG, TENSORS
from increlora_jax.run.build import Plan
from increlora_jax.run.sweep import Member

_KINDS: dict[str, Any] = {
    f.name: KINDS[f.name]
    for group in GROUPS
    if group is not TrainingConfig
    for f in fields(group)
    if f.name not in FREE
} | {"seed": int}
"""The settings that an evaluation depends on."""

_OF_OLD = ("lora_alpha", "scaling", "quantize_base")
"""Those of them that adapters have always held."""

_TWICE = (*_OF_OLD, "task", "method")
"""Those that an adapter holds a second time, outside its settings."""


def describe_adapter(
    plan: Plan, member: Member, step: int, ranks: Mapping[str, int]
) -> dict[str, Any]:
    """Return what `adapter_config.json` holds of a run's adapter."""
    kind, settings = plan.data.kind, member.config.flat()
    return {
        "method": plan.method.name,
        "base_model": plan.config.task.model,
        "quantize_base": plan.config.task.quantize_base,
        "task": kind.task,
        **kind.saved,
        "identity": plan.identity,
        "step": step,
        "total_steps": plan.total_steps,
        "lora_alpha": member.config.adapter.lora_alpha,
        "scaling": plan.config.adapter.scaling,
        "ranks": dict(ranks),
        "dev_data": plan.dev_identity,
        "settings": {name: settings[name] for name in _KINDS},
    }


def restore_config(
    folder: Path, saved: Mapping[str, Any], config: RunConfig
) -> tuple[RunConfig, list[str]]:
    """Return the configuration that the adapter in `folder` was made with, and notes on it.

    Args:
        folder: The adapter's folder, named in notes and errors.
        saved: What its `adapter_config.json` holds.
        config: What `config.yaml` says; of it are taken where model and data are, and, for an
            adapter of an older version, all that the adapter does not hold.

    Raises:
        InputError: the adapter has a setting that is unknown here, of another kind, or given twice
            with two values.
    """
    here = config.flat()
    if "settings" in saved:
        settings = saved["settings"]
        check_keys(f"{folder / CONFIG}: settings", settings, {n: _KINDS.get(n) for n in settings})
        twice = {n: (saved[n], settings[n]) for n in _TWICE if n in settings}
        _check_pairs(folder, twice, "in its settings")
        notes = []
    else:
        settings = {name: saved[name] for name in _OF_OLD}
        notes = [
            f"{folder / CONFIG} is of an older version and holds no settings; those of config.yaml "
            "are used, and must be the run's"
        ]
    notes += [
        f"config.yaml says {name} {here[name]}, the adapter was made with {value}: the adapter's "
        "is used"
        for name, value in settings.items()
        if here[name] != value
    ]
    return config.changed(settings), notes


def check_ranks(folder: Path, saved: Mapping[str, Any], ranks: Mapping[str, int]) -> None:
    """See that the ranks that an adapter tells are those of its masks.

    Raises:
        InputError: they are not; the first module and both ranks are named.
    """
    told = saved["ranks"]
    names = sorted(told.keys() | ranks.keys())
    _check_pairs(
        folder, {f"ranks.{n}": (told.get(n), ranks.get(n)) for n in names}, f"in {TENSORS}"
    )


def _check_pairs(folder: Path, pairs: Mapping[str, tuple[Any, Any]], where: str) -> None:
    for key, (told, other) in pairs.items():
        if told != other:
            raise InputError(
                f"{folder / CONFIG}: {key} is {told}, and {other} {where}; one of them was changed "
                "since: restore the adapter"
            )

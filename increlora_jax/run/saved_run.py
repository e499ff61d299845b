"""A run's description in its adapter, and the run rebuilt from the description.

`adapter_config.json` holds every setting that an evaluation depends on. `config.yaml` beside it
serves only for the places of model and data: an edit of other settings there is reported and has no
effect.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from increlora_jax.config import DEFAULTS, FREE, GROUPS, KINDS, RunConfig, TrainingConfig
from increlora_jax.errors import InputError
from increlora_jax.files.kinds import check_keys
from increlora_jax.nn.adapter_files import CONFIG, TENSORS, read_adapter_config
from increlora_jax.run.build import Plan, plan_run
from increlora_jax.run.folder import check_identity
from increlora_jax.run.sweep import Member
from increlora_jax.tasks.kind import TaskData

_KINDS: dict[str, Any] = {
    f.name: KINDS[f.name]
    for group in GROUPS
    if group is not TrainingConfig
    for f in fields(group)
    if f.name not in FREE
} | {"seed": int}
"""Settings that an evaluation depends on."""

_OF_OLD = ("lora_alpha", "scaling", "quantize_base")
"""Settings that adapters of all versions hold."""

_TWICE = (*_OF_OLD, "task", "method")
"""Settings that an adapter also holds outside of its `settings`."""


class Opened(NamedTuple):
    """An adapter of a run, whose configuration is read and checked.

    Attributes:
        folder: The adapter's folder.
        saved: The content of its `adapter_config.json`.
        config: The settings it was trained with; one process, one device of any kind.
        notes: Notes for the user.
    """

    folder: Path
    saved: Mapping[str, Any]
    config: RunConfig
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Words for the adapter in messages."""
        return f"the adapter in {self.folder}"

    def plan(self, data: TaskData) -> Plan:
        """Plan the run on other data, after checking that model and tokenizer are the run's.

        Raises:
            InputError: If they are not.
        """
        plan = plan_run(
            self.config,
            total_steps=self.saved["total_steps"],
            data=data,
            initial_ranks=self.saved.get("initial_ranks"),
        )
        # An older version took over the rows of a checkpoint's head without matching labels.
        plan = replace(plan, matches_labels="settings" in self.saved)
        here = {key: value for key, value in plan.identity.items() if key != "data"}
        check_identity(self.name, self.saved["identity"], here)
        return plan


def open_adapter(
    folder: Path, asked: RunConfig, base: Mapping[str, str | None], method: str | None = None
) -> Opened:
    """Read an adapter's configuration.

    Args:
        folder: The adapter's folder.
        asked: The settings of the run's `config.yaml`.
        base: The base model's place by the names of its flags; empty: as in training.
        method: `package.module:function` of the user's method that trained the run. Its code is
            then imported.

    Raises:
        InputError: If there is no such adapter, or it does not fit the settings.
    """
    saved = read_adapter_config(folder)
    asked = _alone(asked, base)
    check_identity(f"the adapter in {folder}", {"task": saved["task"]}, {"task": asked.task.task})
    config, notes = restore_config(folder, saved, asked)
    return Opened(folder, saved, _without_code(folder, config, method), tuple(notes))


def _alone(config: RunConfig, base: Mapping[str, Any]) -> RunConfig:
    """Set one process and one device of any kind, whatever trained the run."""
    training = replace(config.training, distributed=False, mesh=None, attn_implementation="xla")
    adapter = replace(config.adapter, init_adapter=None, ignore_head=False)
    task = replace(config.task, **base)
    return replace(config, training=training, task=task, adapter=adapter)


def _without_code(folder: Path, config: RunConfig, method: str | None) -> RunConfig:
    """Check that the user asked for the run's code; drop its importance, which is not used."""
    trained_by = config.adapter.method
    if method != (trained_by if ":" in trained_by else None):
        if ":" in trained_by:
            raise InputError(
                f"{folder} was trained by code, {trained_by}, which is not run unasked. If you "
                f"trust it, give --method {trained_by}"
            )
        raise InputError(
            f"--method {method}: {folder} was trained by {trained_by}. Leave the flag out"
        )
    return config.changed({"importance": DEFAULTS["importance"]})


def describe_adapter(
    plan: Plan, member: Member, step: int, ranks: Mapping[str, int]
) -> dict[str, Any]:
    """Return the content of `adapter_config.json` for a run's adapter.

    Args:
        plan: The plan of all runs.
        member: The run.
        step: Steps done.
        ranks: The rank of each module.
    """
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
        **({"initial_ranks": plan.start.ranks} if plan.start else {}),
        "dev_data": plan.dev_identity,
        "settings": {name: settings[name] for name in _KINDS},
    }


def restore_config(
    folder: Path, saved: Mapping[str, Any], config: RunConfig
) -> tuple[RunConfig, list[str]]:
    """Return the configuration that the adapter in `folder` was trained with, and notes.

    Args:
        folder: The adapter's folder, for notes and errors.
        saved: The content of its `adapter_config.json`.
        config: The settings of `config.yaml`. They give the places of model and data, and for an
            adapter of an older version all settings that the adapter lacks.

    Raises:
        InputError: If the adapter has a setting that is unknown, of another kind, or given twice
            with different values.
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
    """Check that an adapter's stated ranks are those of its masks.

    Raises:
        InputError: If they are not; the message has the first module and both ranks.
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
                f"{folder / CONFIG}: {key} is {told}, and {other} {where}. One of them was "
                "changed since: restore the adapter"
            )

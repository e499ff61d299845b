"""Trained models of other makers: a LoRA of PEFT on its base, or a whole model with its head."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from increlora_jax.config import KINDS, AdapterConfig, RunConfig
from increlora_jax.errors import InputError
from increlora_jax.files.json_object import read_json_object
from increlora_jax.files.kinds import check_keys
from increlora_jax.interop.merged import WHOLE
from increlora_jax.interop.model import TrainedModel
from increlora_jax.interop.peft_files import CONFIG as PEFT_CONFIG
from increlora_jax.interop.peft_files import TASK
from increlora_jax.interop.peft_model import attach_found, find_paths
from increlora_jax.interop.peft_reading import PeftAdapter, read_peft
from increlora_jax.models.registry import find_spec
from increlora_jax.run.build import Plan, load_base, load_parts, plan_run
from increlora_jax.run.folder import check_identity
from increlora_jax.run.trained import TOLD, Trained, describe_model
from increlora_jax.tasks.kind import TaskData
from increlora_jax.tasks.registry import restore_kind
from increlora_jax.weights.folder import CONFIG_NAME, read_config
from increlora_jax.weights.hub import resolve_model
from increlora_jax.weights.table import is_matched

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LONGEST = 512
"""Tokens of an example, where nothing says how many."""


def load_peft(
    path: Path, base: Mapping[str, str | None], changes: Mapping[str, Any] = MappingProxyType({})
) -> Trained:
    """Load a model with a LoRA of PEFT."""
    adapter = read_peft(path)
    place = dict(base)
    if not place:
        place = {"model": adapter.config.get("base_model_name_or_path"),
                 "model_revision": adapter.config.get("revision")}  # fmt: skip
    if not place.get("model"):
        raise InputError(f"--run {path} does not name its base model. Give it by --model")
    config = RunConfig(adapter=AdapterConfig(method="head")).changed(place)
    task = config.task
    folder = resolve_model(task.model, task.model_revision, task.model_subfolder)
    told = describe_peft_task(path, folder, adapter)
    plan = _plan_alone(config, told, changes)
    note = check_base(path, told, plan.identity)
    model, report = load_base(plan, jnp.float32)
    found = find_paths(model, find_spec(read_config(folder)).weights, adapter)
    if untold := [name for name in report.new_parameters if name not in found.full]:
        raise InputError(
            f"{path}: {', '.join(untold)} is neither in the adapter nor in the base model. Give a "
            "base model with the head, or save the adapter with modules_to_save"
        )
    skeleton, parts = attach_found(model, found)
    own = describe_model(plan, skeleton, parts, report)
    return Trained(plan, _keep_dtype(own, told), {}, (*note, *plan.notes))


def check_base(path: Path, told: Mapping[str, Any], identity: Mapping[str, str]) -> tuple[str, ...]:
    """Check that an adapter is of this base model; return a note if its folder does not say.

    Raises:
        InputError: If it is of another one.
    """
    there = told.get("identity")
    if not isinstance(there, dict):
        return (f"{path} does not say of which content its base model was; it must be this one",)
    here = {name: identity[name] for name in there if name in identity}
    check_identity(f"the adapter in {path}", there, here)
    return ()


def _keep_dtype(model: TrainedModel, told: Mapping[str, Any]) -> TrainedModel:
    """Return the description with the dtype that the model was saved with."""
    return model._replace(task={**model.task, "dtype": told.get("dtype", model.task["dtype"])})


def describe_peft_task(path: Path, folder: Path, adapter: PeftAdapter) -> dict[str, Any]:
    """Describe the task of a folder of PEFT, as far as it and the base model tell.

    Args:
        path: The folder.
        folder: The base model's folder.
        adapter: The content of the folder.

    Raises:
        InputError: If the task is none that is known here.
    """
    if (path / TASK).is_file():
        return dict(read_json_object(path / TASK))
    kinds = {"SEQ_CLS": "text", "QUESTION_ANS": "squad"}
    word = adapter.config.get("task_type")
    if word not in kinds:
        raise InputError(
            f"{path / PEFT_CONFIG}: task_type is {word}, and models of {' and '.join(kinds)} "
            "are read"
        )
    config = read_config(folder)
    named: dict[Any, str] = dict(config.id2label or {})
    rows = _count_outputs(config, adapter) or len(named)
    names = [named.get(index, f"LABEL_{index}") for index in range(rows)]
    return _describe_task(kinds[word], names, config)


def _count_outputs(config: "PretrainedConfig", adapter: PeftAdapter) -> int:
    """Count the rows of the output layer in an adapter; 0 if it has none."""
    table = find_spec(config).weights
    keys = {table.rename_key(key): value for key, value in adapter.full.items()}
    return next((len(value) for key, value in keys.items() if is_matched(key, table.outputs)), 0)


def load_whole(path: Path, changes: Mapping[str, Any] = MappingProxyType({})) -> Trained:
    """Load a whole model: a merged one, or another with a head for a task known here."""
    saved = _describe_whole(path)
    config = RunConfig(adapter=AdapterConfig(method="head")).changed({"model": str(path)})
    plan = _plan_alone(config, saved, changes)
    skeleton, (parts, *_), report = load_parts(plan, jnp.float32)
    if report.new_parameters:
        told = "; ".join(report.describe())
        raise InputError(f"{path}: {told}. Give a model whose head is trained")
    own = describe_model(plan, skeleton, parts, report)
    return Trained(plan, _keep_dtype(own, saved), {}, plan.notes)


def _plan_alone(config: RunConfig, saved: Mapping[str, Any], changes: Mapping[str, Any]) -> Plan:
    """Plan a model that comes without a run, by the description of its task."""
    kinds = {**_KINDS, **{name: KINDS[name] for name in TOLD}}
    where = f"the description of the task in {config.task.model}"
    check_keys(where, saved, {n: kinds[n] for n in saved if n in kinds}, may_have_others=True)
    settings = {name: saved[name] for name in TOLD if name in saved}
    task = str(saved.get("task", ""))
    config = config.changed({"cls_dropout": None, "task": task, **settings, **changes})
    kind = restore_kind({**saved, "task": task}, config.task)
    return plan_run(config, total_steps=1, data=TaskData(kind, None, {}))


_HEADS = {"ForSequenceClassification": "text", "ForQuestionAnswering": "squad"}
"""Tasks of models of other makers, by the end of the architecture's name."""


def _describe_whole(path: Path) -> dict[str, Any]:
    """Return the description of a whole model's task, as `adapter_config.json` has it."""
    config = read_config(path)
    if own := getattr(config, WHOLE, None):
        if not isinstance(own, dict):
            raise InputError(f"{path / CONFIG_NAME}: {WHOLE} is no object. Restore it")
        return dict(own)
    names = config.architectures or []
    task = next((t for end, t in _HEADS.items() for name in names if name.endswith(end)), None)
    if task is None:
        raise InputError(
            f"{path / CONFIG_NAME}: architectures is {names}, and answers are given by models "
            f"whose names end in {' or '.join(_HEADS)}. Give a run's folder, or such a model"
        )
    named: dict[Any, str] = dict(config.id2label or {})
    return _describe_task(task, [named[index] for index in sorted(named)], config)


_KINDS: dict[str, Any] = {"task": str, "labels": list[str] | None, "columns": list[str]}
_UNNAMED = re.compile(r"LABEL_\d+")


def _describe_task(task: str, names: Sequence[str], config: "PretrainedConfig") -> dict[str, Any]:
    """Describe a task of other makers; one label is a regression, unnamed labels are numbers."""
    if all(_UNNAMED.fullmatch(name) for name in names):
        names = [str(index) for index in range(len(names))]
    kind, several = getattr(config, "problem_type", None), len(names) > 1
    if kind == "multi_label_classification" or (kind == "regression" and several):
        raise InputError(
            f"{config.name_or_path}: problem_type is {kind} with {len(names)} outputs, and one "
            "label or one score is answered here. Use another program"
        )
    length = min(_LONGEST, getattr(config, "max_position_embeddings", None) or _LONGEST)
    labels = None if len(names) == 1 else list(names)
    return {"task": task, "labels": labels, "columns": [], "max_seq_length": length}

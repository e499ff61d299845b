"""A trained model from its folder: a run, an adapter, or a whole model with its head."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from increlora_jax.config import AdapterConfig, RunConfig, TaskConfig
from increlora_jax.errors import InputError
from increlora_jax.files.replace import find_folder
from increlora_jax.nn.adapter_files import CONFIG as ADAPTER_CONFIG
from increlora_jax.nn.adapter_files import load_adapter, read_adapter_config
from increlora_jax.nn.report import ranks_of
from increlora_jax.nn.skeleton import Parts, Skeleton
from increlora_jax.run.build import Plan, load_parts, plan_run
from increlora_jax.run.command_line import read_run
from increlora_jax.run.folder import CONFIG, name_adapter
from increlora_jax.run.saved_run import Opened, check_ranks, open_adapter
from increlora_jax.run.sweep import members_of
from increlora_jax.tasks.kind import Kind, TaskData
from increlora_jax.tasks.registry import restore_kind
from increlora_jax.weights.folder import CONFIG_NAME, read_config

BASE = ("model", "model_revision", "model_subfolder")
"""The flags that locate the base model."""

WHOLE = "increlora_jax"
"""Key of `config.json` under which a merged model describes its task."""


class Trained(NamedTuple):
    """A trained model taken apart; its base has the precision of its files.

    Attributes:
        plan: The plan of its run, on no data.
        skeleton, parts: The model, with the learned arrays in `parts`.
        saved: The content of its `adapter_config.json`; empty for a whole model.
        notes: Notes for the user.
    """

    plan: Plan
    skeleton: Skeleton
    parts: Parts
    saved: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        """The kind of task it is trained for."""
        return self.plan.data.kind

    def merge(self) -> nnx.Module:
        """Return the plain model, with every update added to its kernel."""
        merged: nnx.Module = self.skeleton.merge(self.parts)
        return merged


def base_from(chosen: Namespace) -> dict[str, str | None]:
    """Return the flags for the base model; a new model resets revision and subfolder."""
    flags = {name: getattr(chosen, name) for name in BASE}
    return flags if flags["model"] else {name: word for name, word in flags.items() if word}


def load_trained(
    path: Path,
    *,
    adapter: str = "last",
    base: Mapping[str, str | None] | None = None,
    method: str | None = None,
    quantize: str | None = None,
) -> Trained:
    """Load a trained model.

    Args:
        path: The folder of a run, of an adapter, or of a whole model in Hugging Face's layout.
        adapter: `last` or `best`, of a run.
        base: The base model's place by the names of its flags; default: as in training.
        method: `package.module:function` of the user's method that trained the run, if any.
        quantize: How the base is stored instead of as in training.

    Raises:
        InputError: If the folder holds no trained model, or one that cannot be loaded.
    """
    if (path / CONFIG).is_file():
        return _load_run(path, adapter, base or {}, method, quantize)
    if adapter != "last":
        raise InputError(f"--adapter {adapter}: {path} is no run, which alone has several adapters")
    if (find_folder(path) / ADAPTER_CONFIG).is_file():
        return _load(_open_alone(path, base, method), quantize)
    if (path / CONFIG_NAME).is_file():
        if base or method:
            raise InputError(f"{path} is a whole model. Leave out --model and --method")
        return _load_whole(path)
    raise InputError(
        f"--run {path}: no trained model is here. Give the folder of a run ({CONFIG}), of an "
        f"adapter ({ADAPTER_CONFIG}) or of a whole model ({CONFIG_NAME})"
    )


def _open_alone(path: Path, base: Mapping[str, str | None] | None, method: str | None) -> Opened:
    """Open an adapter without its run's `config.yaml`."""
    saved = read_adapter_config(path)
    if "settings" not in saved:
        raise InputError(
            f"{path / ADAPTER_CONFIG} is of an older version and holds no settings. Give the "
            "folder of its run instead"
        )
    asked = RunConfig().changed({"task": saved["task"], "model": saved["base_model"]})
    # All notes would be on settings that differ from the defaults.
    return open_adapter(path, asked, base or {}, method)._replace(notes=())


def _load_run(
    path: Path,
    adapter: str,
    base: Mapping[str, str | None],
    method: str | None,
    quantize: str | None,
) -> Trained:
    config = read_run(path / CONFIG)
    names = [member.name for member in members_of(config)]
    folder = path / name_adapter(adapter)
    if names != [""] and not folder.is_dir():
        raise InputError(
            f"--run {path} holds {len(names)} runs that trained together. Give one of them: "
            f"--run {path / names[0]}"
        )
    if not find_folder(folder).is_dir():
        raise InputError(
            f"--run {path}: there is no {folder.name} yet. Finish the training by the same "
            "command, or give another --adapter"
        )
    return _load(open_adapter(folder, config, base, method), quantize)


def _load(opened: Opened, quantize: str | None) -> Trained:
    if quantize is not None:
        opened = opened._replace(config=opened.config.changed({"quantize_base": quantize}))
    kind = restore_kind(opened.saved, opened.config.task)
    plan = opened.plan(TaskData(kind, None, {}))
    skeleton, (start, *_), _ = load_parts(plan, jnp.float32)
    parts = load_adapter(opened.folder, start)
    check_ranks(opened.folder, opened.saved, ranks_of(parts.slots))
    return Trained(plan, skeleton, parts, opened.saved, (*opened.notes, *plan.notes))


def _load_whole(path: Path) -> Trained:
    """Load a whole model: a merged one, or another with a head for a task known here."""
    saved = _describe_whole(path)
    settings = {"task": saved["task"], "model": str(path), "cls_dropout": None}
    settings |= {"max_seq_length": saved["max_seq_length"], "dtype": saved["dtype"]}
    config = RunConfig(adapter=AdapterConfig(method="head")).changed(settings)
    kind = restore_kind(saved, config.task)
    plan = plan_run(config, total_steps=1, data=TaskData(kind, None, {}))
    skeleton, (parts, *_), report = load_parts(plan, jnp.float32)
    if report.new_parameters:
        told = "; ".join(report.describe())
        raise InputError(f"{path}: {told}. Give a model whose head is trained")
    return Trained(plan, skeleton, parts, {}, (*plan.notes, *report.describe()))


_HEADS = {"ForSequenceClassification": "text", "ForQuestionAnswering": "squad"}
"""Tasks of models of other makers, by the end of the architecture's name."""


def _describe_whole(path: Path) -> dict[str, Any]:
    """Return the description of a whole model's task, as `adapter_config.json` has it."""
    config = read_config(path)
    if own := getattr(config, WHOLE, None):
        return dict(own)
    names = config.architectures or []
    task = next((t for end, t in _HEADS.items() for name in names if name.endswith(end)), None)
    if task is None:
        raise InputError(
            f"{path / CONFIG_NAME}: architectures is {names}, and answers are given by models "
            f"whose names end in {' or '.join(_HEADS)}. Give a run's folder, or such a model"
        )
    names_of: dict[Any, str] = dict(config.id2label or {})
    labels = None if len(names_of) == 1 else [names_of[index] for index in sorted(names_of)]
    length = min(512, getattr(config, "max_position_embeddings", None) or 512)
    default = TaskConfig().dtype
    return {"task": task, "labels": labels, "columns": [], "max_seq_length": length,
            "dtype": default}  # fmt: skip

"""A trained model from its folder: a run, an adapter, one of PEFT, or a whole model."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from increlora_jax.config import RunConfig
from increlora_jax.errors import InputError
from increlora_jax.files.replace import find_folder
from increlora_jax.interop.peft_reading import is_peft
from increlora_jax.nn.adapter_files import CONFIG as ADAPTER_CONFIG
from increlora_jax.nn.adapter_files import load_adapter, read_adapter_config
from increlora_jax.nn.report import ranks_of
from increlora_jax.run.build import load_parts
from increlora_jax.run.command_line import read_run
from increlora_jax.run.folder import CONFIG, name_adapter
from increlora_jax.run.foreign import load_peft, load_whole
from increlora_jax.run.saved_run import Opened, check_ranks, open_adapter
from increlora_jax.run.sweep import members_of
from increlora_jax.run.trained import Trained, describe_model
from increlora_jax.tasks.kind import TaskData
from increlora_jax.tasks.registry import restore_kind
from increlora_jax.weights.folder import CONFIG_NAME

BASE = ("model", "model_revision", "model_subfolder")
"""The flags that locate the base model."""


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
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Trained:
    """Load a trained model.

    Args:
        path: The folder of a run, of an adapter, or of a whole model in Hugging Face's layout.
        adapter: `last` or `best`, of a run.
        base: The base model's place by the names of its flags; default: as in training.
        method: `package.module:function` of the user's method that trained the run, if any.
        changes: Settings instead of those in training, by name, such as the `dtype`.

    Raises:
        InputError: If the folder holds no trained model, or one that cannot be loaded.
    """
    if (path / CONFIG).is_file():
        return _load_run(path, adapter, base or {}, method, changes)
    if adapter != "last":
        raise InputError(f"--adapter {adapter}: {path} is no run, which alone has several adapters")
    if is_peft(path):
        return load_peft(path, base or {}, changes)
    if (find_folder(path) / ADAPTER_CONFIG).is_file():
        return _load(_open_alone(path, base, method), changes)
    if (path / CONFIG_NAME).is_file():
        if base or method:
            raise InputError(f"{path} is a whole model. Leave out --model and --method")
        return load_whole(path, changes)
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
    changes: Mapping[str, Any],
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
    return _load(open_adapter(folder, config, base, method), changes)


def _load(opened: Opened, changes: Mapping[str, Any]) -> Trained:
    dtype = opened.config.task.dtype
    opened = opened._replace(config=opened.config.changed(changes))
    kind = restore_kind(opened.saved, opened.config.task)
    plan = opened.plan(TaskData(kind, None, {}))
    skeleton, (start, *_), report = load_parts(plan, jnp.float32)
    parts = load_adapter(opened.folder, start)
    check_ranks(opened.folder, opened.saved, ranks_of(parts.slots))
    model = describe_model(plan, skeleton, parts, report)
    model = model._replace(task={**model.task, "dtype": dtype})
    return Trained(plan, model, opened.saved, (*opened.notes, *plan.notes))

"""An adapter on disk: one safetensors file of slots, masks and head, one JSON file beside it."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from increlora_jax.core.adapter import Adapter, Slots
from increlora_jax.errors import InputError
from increlora_jax.nn.parts import Parts

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def save_adapter(folder: Path, parts: Parts, config: dict[str, Any]) -> None:
    """Write adapters, slots and head of `parts`, and `config`; waits for the device.

    The folder is made aside and moved into place: it holds the old adapter or the new one, whole.
    """
    aside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors = {name: np.asarray(value) for name, value in jax.device_get(parts.learned()).items()}
    save_file(tensors, aside / TENSORS)
    (aside / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _move_into_place(aside, folder)


def load_adapter(folder: Path, parts: Parts) -> Parts:
    """Read a saved adapter into the shape of `parts`.

    Raises:
        InputError: no adapter there, a damaged file, or tensors other than the model's; named.
    """
    file = folder / TENSORS
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read as an adapter: {error}") from None
    _check_tensors(file, tensors, parts.learned())

    def take(kind: Any) -> dict[str, Any]:
        return {
            module: kind(*(jnp.asarray(tensors[f"{module}.adapter.{f}"]) for f in kind._fields))
            for module in parts.adapters
        }

    return Parts(
        take(Adapter),
        take(Slots),
        {path: jnp.asarray(tensors[path]) for path in parts.head},
        parts.base,
    )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read what `save_adapter` was told beside the tensors."""
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{file} does not hold a JSON object")
    return config


def _check_tensors(
    file: Path, tensors: Mapping[str, np.ndarray], expected: Mapping[str, Array]
) -> None:
    for name in sorted(expected.keys() ^ tensors.keys()):
        problem = "is missing" if name in expected else "belongs to nothing in this model"
        raise InputError(f"{file}: {name} {problem}; is it an adapter of another model?")
    for name, value in expected.items():
        found = tensors[name]
        if found.shape != value.shape or found.dtype != value.dtype:
            raise InputError(
                f"{file}: {name} is {found.dtype} {list(found.shape)}, the model wants "
                f"{value.dtype} {list(value.shape)}; is it an adapter of another model?"
            )


def _move_into_place(aside: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(aside, folder)
    shutil.rmtree(old, ignore_errors=True)

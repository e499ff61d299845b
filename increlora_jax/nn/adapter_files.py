"""An adapter on disk: one safetensors file of slots, masks and head, one JSON file beside it."""

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array

from increlora_jax.core.adapter import Adapter, Slots
from increlora_jax.errors import InputError
from increlora_jax.files.json_object import read_json_object
from increlora_jax.files.kinds import check_keys
from increlora_jax.files.replace import find_folder, replace_folder
from increlora_jax.files.tensors import Claim, open_tensors, read_claims, write_tensors
from increlora_jax.nn.fingerprint import check_fingerprint, take_fingerprint
from increlora_jax.nn.rules import Applied, Json, Kind, Rules, Value, check_rules
from increlora_jax.nn.skeleton import Parts

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CONFIG_KINDS: dict[str, Kind] = {
    "method": str,
    "base_model": str,
    "quantize_base": str,
    "task": str,
    "identity": dict[str, str],
    "step": int,
    "total_steps": int,
    "lora_alpha": float,
    "scaling": str,
    "ranks": dict[str, int],
}
"""The keys and kinds of the configuration of a run's adapter."""

Fields = TypeVar("Fields", Adapter, Slots)

Folder = str | os.PathLike[str]
"""A path, in which `~` is the user's home."""

NEWER_KINDS: dict[str, Kind] = {
    "labels": list[str] | None,
    "columns": list[str],
    "dev_data": dict[str, str],
    "settings": dict[str, str | int | float | bool | list[str] | None],
    "applied": Applied,
    "initial_ranks": dict[str, int],
}
"""Keys that adapters of older versions do not have."""

_MAX_CONFIG_BYTES = 1 << 22
_NAMES = {
    np.dtype(np.float64): "F64", np.dtype(np.float32): "F32", np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16", np.dtype(np.int32): "I32", np.dtype(np.bool_): "BOOL",
    np.dtype(np.uint32): "U32", np.dtype(np.int64): "I64", np.dtype(np.uint8): "U8",
}  # fmt: skip
"""The names of dtypes in safetensors."""


def save_adapter(
    folder: Folder, parts: Parts, config: Mapping[str, object] = MappingProxyType({})
) -> None:
    """Write the adapters, slots, head and rules of a model; waits for the device.

    A fingerprint of the adapted kernels of the base is written too, unless `config` has the
    identity of the base.

    The folder is replaced as a whole: at every moment it holds the old adapter or the new one.

    Args:
        folder: a path, as text or `Path`.
        parts: a model taken apart, as `il.split` or `trainer.parts` returns it.
        config: other values to write, as JSON; default: none.

    Raises:
        WriteError: the folder cannot be written; the old adapter is as it was.

    >>> import tempfile
    >>> import increlora_jax as il
    >>> _, parts = il.split(il.attach({"w": jnp.ones((4, 4))}), lambda path: False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     il.save_adapter(f"{folder}/adapter", parts)
    ...     il.load_adapter(f"{folder}/adapter", parts).adapters["w"].A.shape
    (4, 4)
    """
    tensors = {name: np.asarray(value) for name, value in jax.device_get(parts.learned()).items()}
    applied = {} if parts.rules is None else {"applied": _describe(parts, parts.rules, config)}
    text = json.dumps({**config, **applied}, indent=2) + "\n"
    with replace_folder(_path(folder)) as aside:
        write_tensors(tensors, aside / TENSORS)
        (aside / CONFIG).write_text(text, encoding="utf-8")


def load_adapter(folder: Folder, parts: Parts) -> Parts:
    """Read a saved adapter into a model of the same shapes.

    If the adapter has no α and scaling, as of older versions, a warning says so.

    Args:
        folder: a path, as text or `Path`.
        parts: the model taken apart, as `il.split` returns it.

    Returns:
        The same parts with the adapters, slots, head and statistics of the file.

    Raises:
        InputError: no adapter, a damaged one, or one of other tensors, α, scaling or base; named.

    >>> import increlora_jax as il, tempfile
    >>> _, parts = il.split(il.attach({"w": jnp.ones((4, 4))}), lambda path: False)
    >>> folder = tempfile.mkdtemp() + "/adapter"
    >>> il.save_adapter(folder, parts)
    >>> il.load_adapter(folder, parts).adapters["w"].A.shape
    (4, 4)
    """
    file = find_folder(_path(folder)) / TENSORS
    tensors = _read_tensors(file, parts)
    if parts.rules is not None:
        _check_applied(file.with_name(CONFIG), parts, parts.rules)

    def take(kind: Callable[..., Fields], names: Sequence[str]) -> dict[str, Fields]:
        return {
            module: kind(*(jnp.asarray(tensors[f"{module}.adapter.{name}"]) for name in names))
            for module in parts.adapters
        }

    measured = {p: jnp.asarray(tensors.get(p, value)) for p, value in parts.statistics.items()}
    return parts._replace(
        adapters=take(Adapter, Adapter._fields),
        slots=take(Slots, Slots._fields),
        head={path: jnp.asarray(tensors[path]) for path in parts.head},
        statistics=measured,
    )


def _read_tensors(file: Path, parts: Parts) -> dict[str, np.ndarray]:
    # Checked before a byte of data is read: a file may claim any size.
    claims, expected = read_claims(file), parts.learned()
    if not claims.keys() & parts.statistics.keys():
        # Written before statistics were carried: they are still those of the model.
        expected = {n: value for n, value in expected.items() if n not in parts.statistics}
    _check_claims(file, claims, expected)
    with open_tensors(file) as reader:
        tensors = {name: reader.get_tensor(name) for name in expected}
    _check_finite(file, tensors)
    return tensors


def read_adapter_config(folder: Folder) -> dict[str, Json]:
    """Read the configuration that a run has given to `save_adapter`.

    Raises:
        InputError: no such file, or other keys and kinds than `CONFIG_KINDS` and `NEWER_KINDS`;
            file and key are named.
    """
    file = find_folder(_path(folder)) / CONFIG
    config = read_json_object(file, max_bytes=_MAX_CONFIG_BYTES)
    newer = {key: kind for key, kind in NEWER_KINDS.items() if key in config}
    check_keys(file, config, CONFIG_KINDS | newer)
    return config


def _describe(parts: Parts, rules: Rules, config: Mapping[str, object]) -> dict[str, Json]:
    base = {} if "identity" in config else {"base": take_fingerprint(parts)}
    return {**rules.describe(), **base}


def _check_applied(file: Path, parts: Parts, rules: Rules) -> None:
    saved = {}
    if file.is_file():  # NaN is allowed in the values of a user
        saved = read_json_object(file, max_bytes=_MAX_CONFIG_BYTES, allow_nan=True)
    here = rules.describe()
    if "applied" in saved:
        check_rules(file, saved["applied"], rules)
        check_fingerprint(file, saved["applied"].get("base", {}), parts)
    elif "lora_alpha" in saved:
        check_rules(file, here | _rules_of_old(saved, here["scaling"]), rules)
    else:
        warnings.warn(
            f"{file} does not say with which lora_alpha and scaling the adapter was made, as older "
            f"versions did not; lora_alpha {here['lora_alpha']} and scaling {here['scaling']!r} "
            "are used here, and must be the same",
            stacklevel=3,
        )


def _rules_of_old(saved: Mapping[str, Json], scaling: Value) -> dict[str, Json]:
    """Return the rules of a run of an older version, whose LoRA had one rule."""
    rule = "target" if saved.get("method") == "lora" else saved.get("scaling", scaling)
    return {"lora_alpha": saved["lora_alpha"], "scaling": rule}


def _path(folder: Folder) -> Path:
    return Path(folder).expanduser()


def _check_finite(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    bad = [name for name, values in tensors.items() if not np.isfinite(values).all()]
    if bad:
        raise InputError(
            f"{file}: {bad[0]} holds numbers that are not finite ({len(bad)} of {len(tensors)} "
            "arrays do); the adapter is damaged: restore the file, or train again"
        )


def _check_claims(file: Path, claims: Mapping[str, Claim], expected: Mapping[str, Array]) -> None:
    for name in sorted(expected.keys() ^ claims.keys()):
        problem = "is missing" if name in expected else "belongs to nothing in this model"
        raise InputError(f"{file}: {name} {problem}; is it an adapter of another model?")
    for name, value in expected.items():
        found, wanted = claims[name], Claim(_NAMES[value.dtype], value.shape)
        if found != wanted:
            raise InputError(
                f"{file}: {name} is {found.dtype} {list(found.shape)}, the model wants "
                f"{wanted.dtype} {list(wanted.shape)}; is it an adapter of another model?"
            )

"""Model folders in Hugging Face's layout: configuration, and weights by a table of names."""

import json
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx
from huggingface_hub import split_state_dict_into_shards_factory
from huggingface_hub.errors import StrictDataclassError
from jax.typing import DTypeLike

from increlora_jax.errors import InputError
from increlora_jax.files.json_object import read_json_object
from increlora_jax.files.replace import replace_file
from increlora_jax.files.tensors import write_tensors
from increlora_jax.quantization import store_like
from increlora_jax.weights.head_labels import HeadRows
from increlora_jax.weights.stored_tensor import StoredTensor
from increlora_jax.weights.table import Place, WeightTable, is_matched
from increlora_jax.weights.tensor_files import INDEX_NAME, SHARDS_PATTERN, list_tensors

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG_NAME = "config.json"
# Vocabulary files. If all are missing, transformers silently makes an empty tokenizer.
_MOST_NAMED = 5
_MOST = 1 << 31
_MOST_OF = {"layer": 1 << 12, "num_labels": 1 << 20}
"""Largest plausible values of numbers that create objects before any weight is checked."""
_ALIGNMENT = 64


@dataclass(frozen=True)
class LoadReport:
    """A report of the loading of a model.

    Attributes:
        new_parameters: Dotted paths of parameters that the file did not fill; they keep their
            initial values.
        replaced_parameters: Those of `new_parameters` for which the file has another shape or other
            labels.
        replaced_keys: The keys of `replaced_parameters` in the file.
        ignored_keys: Keys of the file that the model does not use.
        head_note: The rows that the file's head provides, and the reason; empty without a head.
    """

    new_parameters: tuple[str, ...]
    replaced_keys: tuple[str, ...]
    ignored_keys: tuple[str, ...]
    replaced_parameters: tuple[str, ...] = ()
    head_note: str = ""

    def describe(self) -> tuple[str, ...]:
        """Return notes for the user, with long lists of names shortened."""
        new = [path for path in self.new_parameters if path not in self.replaced_parameters]
        notes: dict[str, Sequence[str]] = {
            "new, not in the model's files": new,
            "of another shape or other labels, newly initialized": self.replaced_keys,
            "in the model's files, not used": self.ignored_keys,
        }
        told = [f"{what}: {_name_some(names)}" for what, names in notes.items() if names]
        return (*([self.head_note] if self.head_note else []), *told)


def read_config(folder: Path) -> "PretrainedConfig":
    """Read a folder's `config.json`; code in the folder is never run.

    Raises:
        InputError: If the file is missing, damaged, or of a type that transformers does not know.
    """
    file = folder / CONFIG_NAME
    _check_plain(file, read_json_object(file))
    from transformers import AutoConfig  # takes seconds

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise InputError(f"{file}: transformers cannot read it: {error}") from error


def _check_plain(file: Path, content: dict[str, Any]) -> None:
    # Without "model_type", transformers would guess the type from the folder's name.
    if not isinstance(content.get("model_type"), str):
        raise InputError(f'{file}: no "model_type". Add the architecture\'s name, such as "bert"')
    for key, value in content.items():
        most = next((n for part, n in _MOST_OF.items() if part in key), _MOST)
        if type(value) is int and abs(value) > most:
            raise InputError(
                f"{file}: {key} is {reprlib.repr(value)}, and no model has more than {most}. Get "
                "the file again from a source you trust"
            )


def load_weights(
    model: nnx.Module,
    folder: Path,
    table: WeightTable,
    choose_rows: Callable[[int], HeadRows] | None = None,
) -> LoadReport:
    """Fill a model's parameters in place, one tensor at a time, cast or quantized like them.

    Args:
        model: The model, which may be abstract; parameters missing in the files are unchanged.
        folder: The folder.
        table: The model's names on disk.
        choose_rows: From the number of rows of the output layer to the rows to use; default: all.

    Raises:
        InputError: If names or shapes do not match, or a file cannot be read. Unless a file failed
            midway, the model is unchanged.
    """
    variables = name_variables(model, nnx.Param)
    places = {path: table.find_place(path) for path in variables}
    tensors = _move_stand_ins(table, places, _list_renamed(folder, table))
    _check_covered(folder, table, places, tensors)
    given = {path: tensors[place.key] for path, place in places.items() if place.key in tensors}
    outputs = [path for path in given if is_matched(path, table.outputs)]
    reshaped = _find_reshaped(table, places, given, variables)
    rows = choose_rows(prod(given[outputs[0]].shape[:1])) if outputs and choose_rows else None
    is_new = bool(reshaped) or (rows is not None and rows.order is None)
    replaced = outputs if is_new else []  # a kernel and its bias belong together
    filled = {path: tensor for path, tensor in given.items() if path not in replaced}
    for path, tensor in filled.items():
        order = rows.order if rows and path in outputs else None
        _fill(variables[path], tensor, places[path], order)
    used = {place.key for place in places.values()}
    return LoadReport(
        new_parameters=tuple(path for path in variables if path not in filled),
        replaced_keys=tuple(given[path].key for path in replaced),
        ignored_keys=tuple(tensor.key for key, tensor in tensors.items() if key not in used),
        replaced_parameters=tuple(replaced),
        head_note=rows.note if rows and is_new == (rows.order is None) else "",
    )


def save_weights(
    model: nnx.Module,
    folder: Path,
    table: WeightTable,
    dtype_of: Callable[[str], DTypeLike | None] = lambda key: None,
    max_shard_size: str = "5GB",
) -> None:
    """Write a model's parameters with Hugging Face's names: one safetensors file, or shards.

    The folder is created if needed. The caller writes its `config.json`.

    Args:
        model: A plain model, without adapters.
        folder: The folder.
        table: The model's names on disk.
        dtype_of: From a key to its dtype; None, the default: the parameter's own.
        max_shard_size: The size above which the weights are split into several files.

    Raises:
        InputError: If the table has no name for a parameter.
        WriteError: If a file cannot be written. The previous file is unchanged.
    """
    tensors = _name_tensors(model, table, dtype_of)
    parted = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda array: array.nbytes,
        filename_pattern=SHARDS_PATTERN,
        max_shard_size=max_shard_size,
    )
    for name, keys in parted.filename_to_tensors.items():
        with replace_file(folder / name) as aside:
            aside.parent.mkdir(parents=True, exist_ok=True)
            write_tensors({key: tensors[key] for key in keys}, aside)
    if parted.is_sharded:
        index = {"metadata": parted.metadata, "weight_map": parted.tensor_to_filename}
        with replace_file(folder / INDEX_NAME) as aside:
            aside.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _name_tensors(
    model: nnx.Module, table: WeightTable, dtype_of: Callable[[str], DTypeLike | None]
) -> dict[str, np.ndarray]:
    tensors = {}
    for path, variable in name_variables(model, nnx.Param).items():
        key, is_transposed = table.find_place(path)
        array = np.asarray(variable.get_value())
        dtype = dtype_of(key) or array.dtype
        tensors[key] = (array.T if is_transposed else array).astype(dtype, copy=False)
    return tensors


def name_variables(model: nnx.Module, kind: type[nnx.Variable]) -> dict[str, nnx.Variable]:
    """Return a model's variables of a kind by dotted path, each shared one once."""
    return {
        ".".join(map(str, path)): node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, kind)
    }


def _list_renamed(folder: Path, table: WeightTable) -> dict[str, StoredTensor]:
    renamed: dict[str, StoredTensor] = {}
    for key, tensor in list_tensors(folder).items():
        today = table.rename_key(key)
        if today in renamed:
            raise InputError(
                f"{tensor.file}: {renamed[today].key} and {key} are two names of one weight, "
                f"{today}. Remove the stale one"
            )
        renamed[today] = tensor
    return renamed


def _move_stand_ins(
    table: WeightTable, places: dict[str, Place], tensors: dict[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Find the tensors of missing keys under the keys that may stand in for them."""
    keys = {place.key for place in places.values()}
    origins = {
        key: other
        for key in keys - tensors.keys()
        if (other := next((o for o in table.list_stand_ins(key) if o in tensors), None))
    }
    moved = set(origins.values()) - keys
    kept = {key: tensor for key, tensor in tensors.items() if key not in moved}
    return kept | {key: tensors[other] for key, other in origins.items()}


def _check_covered(
    folder: Path, table: WeightTable, places: dict[str, Place], tensors: dict[str, StoredTensor]
) -> None:
    keys = {place.key for place in places.values()}
    missing = [
        place.key
        for path, place in places.items()
        if place.key not in tensors and not is_matched(path, table.may_be_missing)
    ]
    left_over = [
        tensor.key
        for key, tensor in tensors.items()
        if key not in keys and is_matched(key, table.body) and not is_matched(key, table.ignored)
    ]
    wrong = {"missing": missing, "left over": left_over}
    if missing or left_over:
        listing = "; ".join(f"{_list_some(names)} {what}" for what, names in wrong.items() if names)
        raise InputError(
            f"{folder}: the weights do not fit the model that {CONFIG_NAME} describes: {listing}. "
            f"Check that {CONFIG_NAME} and the weights belong together"
        )


def _list_some(names: list[str]) -> str:
    return f"{len(names)} key{'s' if len(names) > 1 else ''} ({_name_some(names)})"


def _name_some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _find_reshaped(
    table: WeightTable,
    places: dict[str, Place],
    given: dict[str, StoredTensor],
    variables: dict[str, nnx.Variable],
) -> list[str]:
    reshaped = []
    for path, tensor in given.items():
        shape = variables[path].get_value().shape
        expected = shape[::-1] if places[path].is_transposed else shape
        if tensor.shape == expected:
            continue
        if not is_matched(path, table.outputs):
            raise InputError(
                f"{tensor.file}: {tensor.key} has the shape {list(tensor.shape)}, the model that "
                f"{CONFIG_NAME} describes needs {list(expected)}. Check that they belong together"
            )
        reshaped.append(path)
    return reshaped


def _fill(
    variable: nnx.Variable, tensor: StoredTensor, place: Place, order: Sequence[int] | None
) -> None:
    """Fill a parameter; an output layer takes the file's rows in the given order."""
    parameter = variable.get_value()
    value = _allocate(parameter.shape, parameter.dtype)
    tensor.read_into(value.T if place.is_transposed else value)
    if order is not None:
        value[...] = value[..., list(order)]
    variable.set_value(store_like(parameter, jax.device_put(value)))


def _allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Allocate an array that JAX on the CPU can take over without a copy."""
    size = prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)

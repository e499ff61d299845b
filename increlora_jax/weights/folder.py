"""Model folders of Hugging Face's layout: the configuration, and weights in and out by a table."""

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx
from huggingface_hub.errors import StrictDataclassError

from increlora_jax.errors import InputError
from increlora_jax.files.json_object import read_json_object
from increlora_jax.files.replace import replace_file
from increlora_jax.files.tensors import write_tensors
from increlora_jax.quantization import store_like
from increlora_jax.weights.head_labels import HeadRows
from increlora_jax.weights.stored_tensor import StoredTensor
from increlora_jax.weights.table import Place, WeightTable, is_matched
from increlora_jax.weights.tensor_files import WEIGHTS_NAME, list_tensors

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG_NAME = "config.json"
# Files that say what the tokenizer knows; without one, transformers quietly makes an empty one.
_MOST_NAMED = 5
_MOST = 1 << 31
_MOST_OF = {"layer": 1 << 12, "num_labels": 1 << 20}
"""Of numbers that make so many objects before a weight is looked at, by a part of their key."""
_ALIGNMENT = 64


@dataclass(frozen=True)
class LoadReport:
    """A report of what loading did beyond copying.

    Attributes:
        new_parameters: dotted paths that the file did not fill; they start from their initializer.
        replaced_parameters: those of them for which the file has another shape or other labels.
        replaced_keys: their keys in the file.
        ignored_keys: keys of the file that the model has no use for.
        head_note: which rows of the file's head are used, and why; empty if the file has no head.
    """

    new_parameters: tuple[str, ...]
    replaced_keys: tuple[str, ...]
    ignored_keys: tuple[str, ...]
    replaced_parameters: tuple[str, ...] = ()
    head_note: str = ""

    def describe(self) -> tuple[str, ...]:
        """Return a note for each thing that a user should know, names cut to a readable number."""
        new = [path for path in self.new_parameters if path not in self.replaced_parameters]
        notes: dict[str, Sequence[str]] = {
            "new, not in the model's files": new,
            "of another shape or other labels, started anew": self.replaced_keys,
            "in the model's files, not used": self.ignored_keys,
        }
        told = [f"{what}: {_name_some(names)}" for what, names in notes.items() if names]
        return (*([self.head_note] if self.head_note else []), *told)


def read_config(folder: Path) -> "PretrainedConfig":
    """Read a folder's `config.json`; code that the folder may bring is never run.

    Raises:
        InputError: the file is missing, damaged, or of a type unknown to transformers.
    """
    file = folder / CONFIG_NAME
    _check_plain(file, read_json_object(file))
    from transformers import AutoConfig  # takes seconds

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise InputError(f"{file}: transformers cannot read it: {error}") from error


def _check_plain(file: Path, content: dict[str, Any]) -> None:
    # Checked here because transformers guesses the type from the folder's name if it is missing.
    if not isinstance(content.get("model_type"), str):
        raise InputError(f'{file}: no "model_type"; add the architecture\'s name, such as "bert"')
    for key, value in content.items():
        most = next((n for part, n in _MOST_OF.items() if part in key), _MOST)
        if type(value) is int and abs(value) > most:
            raise InputError(
                f"{file}: {key} is {reprlib.repr(value)}, and no model has more than {most}; get "
                "the file again from where you trust"
            )


def load_weights(
    model: nnx.Module,
    folder: Path,
    table: WeightTable,
    choose_rows: Callable[[int], HeadRows] | None = None,
) -> LoadReport:
    """Fill a model's parameters in place from a folder, one tensor after the other.

    The model may be abstract (`nnx.eval_shape`): what the file does not give stays as it is and is
    named in the report. Tensors are cast to the dtype of the model's parameters, and quantised one
    by one where those are (`quantization.store_quantized`). `choose_rows` says which of so many
    rows of the file's output layer are used; without it all are, as they are.

    Raises:
        InputError: the table leaves a parameter or a key unaccounted for, a shape differs, or a
            file cannot be read. Nothing has been filled then, unless it was the reading that
            failed.
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


def save_weights(model: nnx.Module, folder: Path, table: WeightTable) -> None:
    """Write a model's parameters as `model.safetensors` with Hugging Face's names.

    The folder is made if need be; its `config.json` is the caller's to write.

    Raises:
        InputError: the table does not name one of the parameters.
        WriteError: the file cannot be written; the one before is as it was.
    """
    tensors = {}
    for path, variable in name_variables(model, nnx.Param).items():
        key, is_transposed = table.find_place(path)
        array = np.asarray(variable.get_value())
        tensors[key] = np.ascontiguousarray(array.T if is_transposed else array)
    with replace_file(folder / WEIGHTS_NAME) as aside:
        aside.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(tensors, aside)


def name_variables(model: nnx.Module, kind: type[nnx.Variable]) -> dict[str, nnx.Variable]:
    """Collect a model's variables of a kind by their dotted paths, each shared one once."""
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
                f"{today}; remove the one that is stale"
            )
        renamed[today] = tensor
    return renamed


def _move_stand_ins(
    table: WeightTable, places: dict[str, Place], tensors: dict[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Put under each key that is missing what the file holds for it under another name."""
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
                f"{CONFIG_NAME} describes needs {list(expected)}; check that they belong together"
            )
        reshaped.append(path)
    return reshaped


def _fill(
    variable: nnx.Variable, tensor: StoredTensor, place: Place, order: Sequence[int] | None
) -> None:
    """Fill a parameter; of an output layer with the file's rows in this order."""
    parameter = variable.get_value()
    value = _allocate(parameter.shape, parameter.dtype)
    tensor.read_into(value.T if place.is_transposed else value)
    if order is not None:
        value[...] = value[..., list(order)]
    variable.set_value(store_like(parameter, jax.device_put(value)))


def _allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Allocate where JAX, on the CPU, takes an array over as it is instead of copying it."""
    size = prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)

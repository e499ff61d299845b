"""The tensors of a model folder, by key, read one at a time."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from increlora_jax.errors import InputError
from increlora_jax.models.stored_tensor import Rows, StoredTensor
from increlora_jax.models.torch_files import list_torch_file

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
TORCH_NAME = "pytorch_model.bin"
TORCH_INDEX_NAME = "pytorch_model.bin.index.json"

Tensors = dict[str, StoredTensor]


def list_tensors(folder: Path) -> Tensors:
    """List the tensors of a folder by their keys; safetensors go before PyTorch's own files.

    Raises:
      InputError: there are none, a file is damaged, or shards and index disagree.
    """
    name = find_weights(folder)
    if name is None:
        raise InputError(
            f"{folder}: none of {', '.join(_LISTS)} is here; give a folder or hub id that has one "
            "(transformers' save_pretrained writes safetensors)"
        )
    return _LISTS[name](folder / name)


def find_weights(folder: Path) -> str | None:
    """Find the name of the file that a folder's weights are read from, or of their index."""
    return next((name for name in _LISTS if (folder / name).is_file()), None)


def _list_file(file: Path) -> Tensors:
    with _open_safetensors(file) as handle:
        slices = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118 (no mapping)
        return {
            key: StoredTensor(
                file, key, tuple(part.get_shape()), part.get_dtype(), partial(_load, file, key)
            )
            for key, part in slices.items()
        }


def _load(file: Path, key: str, rows: Rows) -> np.ndarray:
    # Opened anew each time: closing unmaps what was read, so memory holds it once.
    with _open_safetensors(file) as handle:
        return handle.get_tensor(key) if rows is ... else handle.get_slice(key)[rows]


def _list_shards(list_file: Callable[[Path], Tensors], index: Path) -> Tensors:
    shard_of = _read_index(index)
    tensors: Tensors = {}
    for name in sorted(set(shard_of.values())):
        tensors |= list_file(index.parent / name)
    for key, name in shard_of.items():
        if key not in tensors or tensors[key].file.name != name:
            raise InputError(
                f"{index}: {key} should be in {name}, which does not hold it; "
                "download the folder again"
            )
    return tensors


def _read_index(index: Path) -> dict[str, str]:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = set(shard_of.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index}: not an index of shards ({error!r}); download the folder again"
        ) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(
                f"{index}: the shard {name!r} is not a file name; shards lie beside their index"
            )
    return shard_of


@contextmanager
def _open_safetensors(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, framework="numpy") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file}: not a readable safetensors file ({error}); it may be cut short or be a "
            "Git LFS pointer: download it again"
        ) from error


_LISTS: dict[str, Callable[[Path], Tensors]] = {
    WEIGHTS_NAME: _list_file,
    INDEX_NAME: partial(_list_shards, _list_file),
    TORCH_NAME: list_torch_file,
    TORCH_INDEX_NAME: partial(_list_shards, list_torch_file),
}
"""How the weights are listed from each of the files that may hold them, the first found."""

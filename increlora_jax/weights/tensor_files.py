"""Tensors of a model folder by key, read one at a time."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.files.inside import inside
from increlora_jax.files.json_object import read_json_object
from increlora_jax.files.kinds import check_keys
from increlora_jax.files.tensors import open_tensors, read_claims
from increlora_jax.weights.stored_tensor import Rows, StoredTensor
from increlora_jax.weights.torch_files import list_torch_file

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
SHARDS_PATTERN = "model{suffix}.safetensors"
"""Names of files that are written; a single file has no suffix."""
TORCH_NAME = "pytorch_model.bin"
TORCH_INDEX_NAME = "pytorch_model.bin.index.json"

Tensors = dict[str, StoredTensor]


def list_tensors(folder: Path) -> Tensors:
    """List the tensors of a folder by key; safetensors are preferred to PyTorch's own files.

    Raises:
        InputError: If there are no weights, a file is damaged, or shards and index disagree.
    """
    name = find_weights(folder)
    if name is None:
        raise _describe_empty(folder)
    return _LISTS[name](folder / name)


def find_weights(folder: Path) -> str | None:
    """Return the name of the file with a folder's weights, or of their index."""
    return next((name for name in _LISTS if (folder / name).is_file()), None)


def list_weights(folder: Path) -> list[Path]:
    """List the files with a folder's weights: one file, or the shards and their index.

    Raises:
        InputError: If there are no weights, or the index is damaged.
    """
    name = find_weights(folder)
    if name is None:
        raise _describe_empty(folder)
    shards = _read_index(folder / name).values() if name in (INDEX_NAME, TORCH_INDEX_NAME) else ()
    return [folder / name, *sorted(set(shards))]


def _describe_empty(folder: Path) -> InputError:
    return InputError(
        f"{folder}: none of {', '.join(_LISTS)} is here. Give a folder or hub id that has one "
        "(transformers' save_pretrained writes safetensors)"
    )


def _list_file(file: Path) -> Tensors:
    return {
        key: StoredTensor(file, key, claim.shape, claim.dtype, partial(_load, file, key))
        for key, claim in read_claims(file).items()
    }


def _load(file: Path, key: str, rows: Rows) -> np.ndarray:
    # Open the file for each tensor: closing unmaps the pages, so memory holds one tensor.
    with open_tensors(file) as reader:
        return reader.get_tensor(key) if rows is ... else reader.get_slice(key)[rows]


def _list_shards(list_file: Callable[[Path], Tensors], index: Path) -> Tensors:
    shard_of = _read_index(index)
    tensors: Tensors = {}
    for shard in sorted(set(shard_of.values())):
        tensors |= list_file(shard)
    for key, shard in shard_of.items():
        if key not in tensors or tensors[key].file != shard:
            raise InputError(
                f"{index}: {key} should be in {shard.name}, which does not hold it. "
                "Download the folder again"
            )
    return tensors


def _read_index(index: Path) -> dict[str, Path]:
    content = read_json_object(index)
    check_keys(index, content, {"weight_map": dict[str, str]}, may_have_others=True)
    return {key: inside(index.parent, name, index) for key, name in content["weight_map"].items()}


_LISTS: dict[str, Callable[[Path], Tensors]] = {
    WEIGHTS_NAME: _list_file,
    INDEX_NAME: partial(_list_shards, _list_file),
    TORCH_NAME: list_torch_file,
    TORCH_INDEX_NAME: partial(_list_shards, list_torch_file),
}
"""Functions that list the weights of each kind of file; the first kind found is used."""

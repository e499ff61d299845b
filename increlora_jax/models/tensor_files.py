"""The tensors of a model folder, by key, read one at a time."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from increlora_jax.errors import InputError

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLE_NAMES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")

# Cloned, since safetensors refuses tensors that share memory, as tied weights do.
_CONVERSION = (
    'python -c "import torch, safetensors.torch as s; '
    "w = torch.load('{folder}/pytorch_model.bin', map_location='cpu', weights_only=True); "
    "s.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, "
    "'{folder}/model.safetensors')\""
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, not yet read."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> np.ndarray:
        """Read the tensor.

        Raises:
          InputError: it holds no floating-point numbers, or the file cannot be read.
        """
        if self.dtype not in FLOAT_DTYPES:
            raise InputError(
                f"{self.file}: {self.key} holds {self.dtype} values, not one of "
                f"{', '.join(FLOAT_DTYPES)}; give an unquantised copy of the model"
            )
        # Opened anew for each tensor: closing unmaps what was read, so memory holds it once.
        with _open_safetensors(self.file) as handle:
            return handle.get_tensor(self.key)


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """List the tensors of a folder with `model.safetensors`, single or sharded, by their keys.

    Raises:
      InputError: there are none, a file is damaged, or shards and index disagree.
    """
    if (folder / WEIGHTS_NAME).is_file():
        return _list_file(folder / WEIGHTS_NAME)
    if (folder / INDEX_NAME).is_file():
        return _list_shards(folder / INDEX_NAME)
    raise InputError(_describe_absence(folder))


def _list_file(file: Path) -> dict[str, StoredTensor]:
    with _open_safetensors(file) as handle:
        slices = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118 (no mapping)
        return {
            key: StoredTensor(file, key, tuple(part.get_shape()), part.get_dtype())
            for key, part in slices.items()
        }


def _list_shards(index: Path) -> dict[str, StoredTensor]:
    shard_of = _read_index(index)
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(shard_of.values())):
        tensors |= _list_file(index.parent / name)
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
            f"{index}: not an index of safetensors shards ({error!r}); download the folder again"
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


def _describe_absence(folder: Path) -> str:
    if any((folder / name).exists() for name in PICKLE_NAMES):
        return (
            f"{folder}: only PyTorch's pickled weights are here, and only safetensors are read; "
            f"convert them where torch is installed:\n  {_CONVERSION.format(folder=folder)}"
        )
    return (
        f"{folder}: no {WEIGHTS_NAME} (or {INDEX_NAME}) here; give a folder or hub id that has "
        "one, or convert its pytorch_model.bin (transformers' save_pretrained writes safetensors)"
    )

"""Safetensors files, whose headers are checked before any memory is allocated for them."""

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from increlora_jax.errors import InputError
from increlora_jax.files.bounded import open_plain
from increlora_jax.files.json_object import MAX_BYTES, parse_json_object
from increlora_jax.files.kinds import check_keys

METADATA = "__metadata__"
MAX_AXES = 32
MAX_ELEMENTS = 1 << 58
_LENGTH = struct.Struct("<Q")
_ENTRY = {"dtype": str, "shape": list[int], "data_offsets": list[int]}


class Claim(NamedTuple):
    """A tensor as a header describes it; the dtype is a name of the safetensors format."""

    dtype: str
    shape: tuple[int, ...]


def read_claims(path: Path) -> dict[str, Claim]:
    """Read the dtypes and shapes from a file's header, after checking them against the file.

    The safetensors library checks that the offsets cover the file without gap or overlap and agree
    with shapes and dtypes. Further checks are made here: no key twice, no more axes than NumPy
    allows, no shape such as [0, 2**62], and no header longer than the file.

    Raises:
        InputError: If the file is damaged or malicious.
    """
    with _explain(path):
        header = parse_json_object(_read_header(path), path)
    claims = {key: _check_entry(path, key, header[key]) for key in header if key != METADATA}
    with open_tensors(path):
        return claims


@contextmanager
def open_tensors(path: Path) -> Iterator[safe_open]:
    """Open a file to read tensors from it; its header must have been checked by `read_claims`.

    Raises:
        InputError: If the file cannot be read, on opening or later.
    """
    with _explain(path), safe_open(path, framework="numpy") as reader:
        yield reader


def write_tensors(
    tensors: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file, by default with the metadata that PyTorch's readers expect.

    The safetensors library takes an array's memory as it is, so that a transposed or broadcast
    array would be written wrongly; such arrays are copied here.

    Raises:
        OSError: If the file cannot be written.
    """
    dense = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    path.touch()
    mode = path.stat().st_mode  # the library makes files that only their owner can read
    try:
        save_file(dense, path, metadata=dict(metadata or {"format": "pt"}))
        path.chmod(mode)
    except SafetensorError as error:
        raise OSError(str(error)) from error


@contextmanager
def _explain(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a readable safetensors file ({error}); it may be cut short or be a "
            "Git LFS pointer: get it again"
        ) from error


def _read_header(path: Path) -> bytes:
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(_LENGTH.size)
        length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else size
        if length > min(size - _LENGTH.size, MAX_BYTES):
            raise OSError(f"it has {size} bytes, and its header claims {length}")
        return file.read(length)


def _check_entry(path: Path, key: str, entry: object) -> Claim:
    where = f"{path}: {key}"
    if not isinstance(entry, dict):
        raise InputError(f"{where} is described by no object. Get the file again")
    check_keys(where, entry, _ENTRY)
    shape = entry["shape"]
    # A zero in a shape makes its size 0, so that the size alone does not reveal absurd axes.
    elements = prod(max(1, n) for n in shape)
    if len(shape) > MAX_AXES or min(shape, default=0) < 0 or elements > MAX_ELEMENTS:
        raise InputError(f"{where} claims a shape that no tensor has. Get the file again")
    return Claim(entry["dtype"], tuple(shape))

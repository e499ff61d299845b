"""Tensors of PyTorch's files (`pytorch_model.bin`), read one at a time without PyTorch.

There are two formats. Since PyTorch 1.6 a file is a zip archive of uncompressed entries. Before, it
was a row of pickles followed by the numbers. Nothing in a file is ever run; see `torch_pickle`.
"""

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.weights.stored_tensor import FLOAT_DTYPES, Rows, StoredTensor
from increlora_jax.weights.torch_pickle import (
    ForbiddenImportError,
    Pickled,
    View,
    interpret,
    read_strided,
)

_ZIP_START = b"PK\x03\x04"
_ZIP_HEADER = struct.Struct("<4s22xHH")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LEGACY_LENGTH = struct.Struct("<q")
_MOST_PICKLE_BYTES = 1 << 22
"""Limit of a pickle's size; a tensor takes some 300 bytes."""


def list_torch_file(file: Path) -> dict[str, StoredTensor]:
    """List the tensors of a file written by `torch.save`, by key.

    Raises:
        InputError: If the file is damaged, asks for an import, or holds more than tensors.
    """
    with _explain(file), file.open("rb") as handle:
        is_zip = handle.read(len(_ZIP_START)) == _ZIP_START
        pickled, starts = (_read_zip if is_zip else _read_legacy)(handle)
        views = _check_views(pickled.value)
        return {
            key: StoredTensor(
                file,
                key,
                view.shape,
                view.storage.dtype,
                partial(_load, file, view, starts[view.storage.key]),
            )
            for key, view in views.items()
        }


@contextmanager
def _explain(file: Path) -> Iterator[None]:
    try:
        yield
    except ForbiddenImportError as error:
        raise InputError(
            f"{file}: it asks to import {error}, and only plain tensors are read. Nothing of the "
            "file was run. Do not trust it unless you know why it asks. Use a safetensors copy"
        ) from error
    # Errors of the standard library's readers and of the pickle interpreter on damaged files.
    except (
        *(OSError, EOFError, ValueError, TypeError, LookupError, OverflowError, RuntimeError),
        *(zipfile.BadZipFile, struct.error),
    ) as error:
        raise InputError(
            f"{file}: not a readable file of PyTorch weights ({error}); it may be cut short or be "
            "a Git LFS pointer: download it again"
        ) from error


def _check_views(value: Any) -> dict[str, View]:
    if type(value) is not dict:
        raise ValueError("no dictionary of tensors")
    for key, view in value.items():
        if type(view) is not View:
            raise ValueError(f"{key} is no tensor")
    return value


def _load(file: Path, view: View, start: int, rows: Rows) -> np.ndarray:
    dtype = FLOAT_DTYPES[view.storage.dtype]
    view = view if rows is ... else view.take(rows)
    numbers = np.empty(view.span, dtype)
    with _explain(file), file.open("rb") as handle:
        handle.seek(start + view.offset * dtype.itemsize)
        if handle.readinto(numbers.view(np.uint8).data) != numbers.nbytes:
            raise ValueError("cut short")
    return read_strided(view, numbers)


def _read_zip(handle: BinaryIO) -> tuple[Pickled, dict[str, int]]:
    with zipfile.ZipFile(handle) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise ValueError("two entries of one name")
        [main] = [name for name in entries if name.endswith("/data.pkl")]
        folder = main.removesuffix("data.pkl")
        pickled = interpret(BytesIO(_read_entry(handle, entries[main])))
        if order := entries.get(f"{folder}byteorder"):
            _check_order(_read_entry(handle, order) == b"little")
        starts = {}
        for key, storage in pickled.storages.items():
            entry = entries[f"{folder}data/{key}"]
            starts[key] = _locate_entry(handle, entry)
            _check_size(key, entry.file_size, storage.bytes)
    return pickled, starts


def _read_entry(handle: BinaryIO, entry: zipfile.ZipInfo) -> bytes:
    if entry.file_size > _MOST_PICKLE_BYTES:
        raise ValueError(f"{entry.filename} claims {entry.file_size} bytes")
    handle.seek(_locate_entry(handle, entry))
    return handle.read(entry.file_size)


def _locate_entry(handle: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Return the start of an entry's bytes, after checking that they are stored uncompressed."""
    handle.seek(entry.header_offset)
    magic, name_length, extra_length = _ZIP_HEADER.unpack(handle.read(_ZIP_HEADER.size))
    start = entry.header_offset + _ZIP_HEADER.size + name_length + extra_length
    is_plain = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
    if not is_plain or entry.compress_size != entry.file_size:
        raise ValueError(f"{entry.filename} is compressed or encrypted")
    if magic != _ZIP_START or start + entry.file_size > _measure(handle):
        raise ValueError(f"{entry.filename} is outside of the file")
    return start


def _read_legacy(handle: BinaryIO) -> tuple[Pickled, dict[str, int]]:
    handle.seek(0)
    pickles = BytesIO(handle.read(_MOST_PICKLE_BYTES))
    if interpret(pickles).value != _LEGACY_MAGIC or interpret(pickles).value != _LEGACY_PROTOCOL:
        raise ValueError("neither of PyTorch's two formats")
    _check_order(interpret(pickles).value["little_endian"] is True)
    pickled = interpret(pickles)
    storages = [pickled.storages[str(key)] for key in interpret(pickles).value]
    starts = {}
    position = pickles.tell()
    for storage in storages:
        handle.seek(position)
        [length] = _LEGACY_LENGTH.unpack(handle.read(_LEGACY_LENGTH.size))
        _check_size(storage.key, length, storage.length)
        starts[storage.key] = position + _LEGACY_LENGTH.size
        position += _LEGACY_LENGTH.size + storage.bytes
    if position > _measure(handle):
        raise ValueError("cut short")
    return pickled, starts


def _check_size(key: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"the storage {key} has the size {found}, not {expected}")


def _check_order(is_little: bool) -> None:
    if not is_little:
        raise ValueError("its numbers are big-endian")


def _measure(handle: BinaryIO) -> int:
    return handle.seek(0, 2)

"""Cache of encoded splits on disk: the next run on the same data need not tokenize them."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

import numpy as np

import increlora_jax.tasks
from increlora_jax.config import TaskConfig
from increlora_jax.errors import InputError
from increlora_jax.files.tensors import open_tensors, write_tensors
from increlora_jax.runtime.private_folder import cache_folder, make_private
from increlora_jax.runtime.streams import tell
from increlora_jax.tasks.kind import Encoded, Ragged, Split, identify

WORTH_KEEPING = 1.0
"""Seconds that an encoding must have taken to be kept."""

MOST_BYTES = 4 * 2**30
"""Size of the cache, above which the encodings that were read least recently are removed."""

_ABANDONED = 86_400.0
"""Seconds after which a folder that is still being written is that of a killed process."""

_PLACES = ("model", "model_revision", "model_subfolder", "data_dir")
"""Settings that only say where something is; the content is part of the key."""

_PARTS = ("values", "offsets", "fixed", "beside")
"""Groups of an encoding's arrays in its file."""


def encode_or_load(key: str, encode: Callable[[], Encoded]) -> Encoded:
    """Return the encoding that is kept under a key, or make it, and keep it if that took long."""
    try:
        folder = cache_folder("tokens")
    except RuntimeError:  # this user has no home
        return encode()
    if (kept := _read(folder, key)) is not None:
        return kept
    began = time.monotonic()
    encoded = encode()
    if time.monotonic() - began >= WORTH_KEEPING:
        _keep(folder, key, encoded)
    return encoded


def identify_encoding(task: TaskConfig, tokenizer: str, split: Split, name: str) -> str:
    """Return the SHA-256 of all that an encoding depends on.

    Args:
        task: The settings.
        tokenizer: The tokenizer's identity.
        split: The examples.
        name: The split's name.
    """
    settings = {k: v for k, v in asdict(task).items() if k not in _PLACES}
    code = hashlib.sha256()
    for file in (Path(__file__), *sorted(Path(*increlora_jax.tasks.__path__).rglob("*.py"))):
        code.update(file.read_bytes())
    libraries = [version(name) for name in ("transformers", "tokenizers", "numpy")]
    parts = [code.hexdigest(), libraries, settings, tokenizer, identify(split), name]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(folder: Path, key: str) -> Encoded | None:
    """Read an encoding; None if there is none, or a damaged one."""
    for path in folder.glob(f"{key}-*"):
        if make_private(folder):  # others could have written what is there
            return None
        try:
            if _digest(path) == path.name.removeprefix(f"{key}-"):
                path.touch()
                return _from_file(path)
        except (OSError, InputError):  # another process has removed it
            continue
        tell(f"note: tokenizing again, as {path} is damaged")
    return None


def _from_file(path: Path) -> Encoded:
    parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in _PARTS}
    with open_tensors(path) as file:
        for key in file.keys():  # noqa: SIM118 - it is no dict
            part, _, name = key.partition("/")
            parts[part][name] = file.get_tensor(key)
        told = {name: json.loads(text) for name, text in file.metadata().items()}
    values, offsets, fixed, beside = parts.values()
    fills = told["fills"]
    ragged = {name: Ragged(values[name], offsets[name], fill) for name, fill in fills.items()}
    return Encoded(ragged, fixed, beside, tuple(told["notes"]), told["num_cut"])


def _to_file(encoded: Encoded, path: Path) -> None:
    ragged = encoded.ragged.items()
    values = {name: field.values for name, field in ragged}
    offsets = {name: field.offsets for name, field in ragged}
    fills = {name: field.fill for name, field in ragged}
    parts = zip(_PARTS, (values, offsets, encoded.fixed, encoded.beside), strict=True)
    arrays = {f"{part}/{name}": array for part, named in parts for name, array in named.items()}
    told = {"fills": fills, "notes": encoded.notes, "num_cut": encoded.num_cut}
    write_tensors(arrays, path, {name: json.dumps(value) for name, value in told.items()})


def _keep(folder: Path, key: str, encoded: Encoded) -> None:
    """Write an encoding under its key and digest, or tell why not."""
    if problem := make_private(folder):
        tell(f"note: tokens are not kept: {folder} {problem}")
        return
    try:
        with TemporaryDirectory(prefix=".", dir=folder) as aside:
            path = Path(aside, "encoded")
            _to_file(encoded, path)
            path.replace(folder / f"{key}-{_digest(path)}")
        _prune(folder)
    except OSError as error:
        tell(f"note: tokens are not kept: {folder} cannot be written: {error}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prune(folder: Path) -> None:
    """Remove what killed processes have left, and files until the rest is small enough."""
    found = {path: path.stat() for path in folder.iterdir()}
    newest_first = sorted(found, key=lambda path: found[path].st_mtime, reverse=True)
    total = 0
    for path in newest_first:
        if path.is_dir():
            if time.time() - found[path].st_mtime > _ABANDONED:
                rmtree(path, ignore_errors=True)
            continue
        total += found[path].st_size
        if total > MOST_BYTES and path != newest_first[0]:
            path.unlink(missing_ok=True)

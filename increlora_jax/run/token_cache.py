"""Cache of encoded splits on disk: the next run on the same data need not tokenize them."""

import hashlib
import json
import os
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import increlora_jax.tasks
from increlora_jax.config import TaskConfig
from increlora_jax.runtime.private_folder import cache_folder, make_private
from increlora_jax.runtime.streams import tell
from increlora_jax.tasks.kind import Encoded, Split, identify

WORTH_KEEPING = 1.0
"""Seconds that an encoding must have taken to be kept."""

MOST_BYTES = 4 * 2**30
"""Size of the cache, above which the encodings that were read least recently are removed."""

_PLACES = ("model", "model_revision", "model_subfolder", "data_dir")
"""Settings that only say where something is; the content is part of the key."""


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
    for file in sorted(Path(*increlora_jax.tasks.__path__).rglob("*.py")):
        code.update(file.read_bytes())
    libraries = [version(name) for name in ("transformers", "tokenizers", "numpy")]
    parts = [code.hexdigest(), libraries, settings, tokenizer, identify(split), name]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(folder: Path, key: str) -> Encoded | None:
    """Read an encoding; None if there is none, or a damaged one."""
    for path in folder.glob(f"{key}-*"):
        if make_private(folder):  # others could have written what is run here
            return None
        try:
            content = path.read_bytes()
            path.touch()
        except OSError:  # another process has removed it
            continue
        if hashlib.sha256(content).hexdigest() == path.name.removeprefix(f"{key}-"):
            kept: Encoded = pickle.loads(content)
            return kept
        tell(f"note: tokenizing again, as {path} is damaged")
    return None


def _keep(folder: Path, key: str, encoded: Encoded) -> None:
    content = pickle.dumps(encoded, protocol=5)
    path = folder / f"{key}-{hashlib.sha256(content).hexdigest()}"
    aside = folder / f".{os.getpid()}-{path.name}"
    problem = make_private(folder)
    try:
        if not problem:
            aside.write_bytes(content)
            aside.replace(path)
            _prune(folder)
    except OSError as error:
        problem = f"cannot be written: {error}"
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    if problem:
        tell(f"note: tokens are not kept: {folder} {problem}")


def _prune(folder: Path) -> None:
    """Remove files, those of killed processes too, until the rest is small enough."""
    sizes = {file: file.stat() for file in folder.iterdir()}
    newest_first = sorted(sizes, key=lambda file: sizes[file].st_mtime, reverse=True)
    total = 0
    for file in newest_first:
        total += sizes[file].st_size
        if total > MOST_BYTES and file != newest_first[0]:
            file.unlink()

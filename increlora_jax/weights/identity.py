"""Identity of a model folder by content: equal weights in another folder are the same model."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from increlora_jax.errors import InputError
from increlora_jax.files.bounded import open_plain
from increlora_jax.weights.folder import CONFIG_NAME
from increlora_jax.weights.tensor_files import list_weights
from increlora_jax.weights.tokenizer import TOKENIZER_NAMES


def identify_model(folder: Path) -> str:
    """Return the SHA-256 of the weight files and of the configuration."""
    return _hash_files(folder, [folder / CONFIG_NAME, *list_weights(folder)])


def identify_tokenizer(folder: Path) -> str:
    """Return the SHA-256 of every file of the tokenizer."""
    present = [folder / name for name in TOKENIZER_NAMES if (folder / name).is_file()]
    return _hash_files(folder, present)


def _hash_files(folder: Path, paths: Iterable[Path]) -> str:
    ordered = sorted(paths)
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_hash_file, ordered))
    names = [path.relative_to(folder).as_posix() for path in ordered]
    return hashlib.sha256(json.dumps([names, hashes]).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    try:
        with open_plain(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error

"""What a model folder is, by its content: the same weights elsewhere are the same model."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from increlora_jax.errors import InputError
from increlora_jax.models.hf import CONFIG_NAME, VOCABULARY_NAMES
from increlora_jax.models.tensor_files import find_weights

TOKENIZER_NAMES = (
    *VOCABULARY_NAMES,
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)


def identify_model(folder: Path) -> str:
    """SHA-256 of the weights, as they lie in their files, and of the configuration."""
    name = find_weights(folder)
    if name is None:
        raise InputError(f"{folder}: there are no weights here")
    names = {CONFIG_NAME, name}
    if name.endswith(".index.json"):
        index = json.loads((folder / name).read_text(encoding="utf-8"))
        names |= set(index["weight_map"].values())
    return _hash_files(folder, names)


def identify_tokenizer(folder: Path) -> str:
    """SHA-256 of every file that a tokenizer is made of."""
    return _hash_files(folder, {n for n in TOKENIZER_NAMES if (folder / n).is_file()})


def _hash_files(folder: Path, names: Iterable[str]) -> str:
    ordered = sorted(names)
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_hash_file, [folder / name for name in ordered]))
    return hashlib.sha256(json.dumps([ordered, hashes]).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

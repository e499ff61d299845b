"""Files of a data folder, by split."""

import os
from collections.abc import Sequence
from pathlib import Path

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.lines import PACKED
from increlora_jax.tasks.data.records import quote_all
from increlora_jax.tasks.data.tables import SUFFIXES, kind_of

_ONLY_SHARD = "-00000-of-00001"  # the hub's suffix of a split in one file


def find_split(data_dir: Path, split: str) -> Path:
    """Find the file of a split, in any case: `dev.tsv`, `dev.csv.gz`, `VALIDATION.JSON`, ….

    Raises:
        InputError: If there is no such file, or more than one.
    """
    names = list_names(data_dir)
    stems = list(dict.fromkeys((split, name_hub_split(split), name_own_split(split))))
    found = [name for name in names if kind_of(name) and _stem_of(name) in stems]
    if not found:
        here = f"; here are {quote_all(names)}" if names else ""
        wanted = f"{' or '.join(stems)} with one of {', '.join(SUFFIXES)}"
        raise InputError(f"{data_dir}: no {split} file is here. Add {wanted}{here}")
    if len(found) > 1:
        raise InputError(f"{data_dir}: {' and '.join(found)} are both here. Keep one")
    return data_dir / found[0]


def list_unused(data_dir: Path, used: Sequence[Path]) -> list[str]:
    """Report the data files of a folder that were not read, if there are any."""
    files = {name for name in list_names(data_dir) if kind_of(name)}
    unused = sorted(files - {path.name for path in used})
    if not unused:
        return []
    hint = ""
    if any(_stem_of(name).startswith("test") for name in unused):
        hint = "; to score a trained run on the test split: evaluate --run RUN --split test"
    return [f"not read in {data_dir}: {quote_all(unused)}{hint}"]


def list_names(data_dir: Path) -> list[str]:
    """List the names in a folder, sorted, without hidden ones.

    Raises:
        InputError: If the folder cannot be read.
    """
    try:
        names = os.listdir(data_dir)
    except OSError as error:
        raise InputError(
            f"{data_dir}: cannot be read as a folder ({error.strerror}). "
            "Give --data-dir one that holds the train and dev files"
        ) from error
    return sorted(name for name in names if not name.startswith("."))


def _stem_of(name: str) -> str:
    stem = name.lower().removesuffix(PACKED).removesuffix(kind_of(name))
    return stem.removesuffix(_ONLY_SHARD)


def name_hub_split(split: str) -> str:
    """Return Hugging Face's name of a split: `validation_matched` for `dev_matched`."""
    return split.replace("dev", "validation", 1)


def name_own_split(split: str) -> str:
    """Return this package's name of a split: `dev_matched` for `validation_matched`."""
    return split.replace("validation", "dev", 1)

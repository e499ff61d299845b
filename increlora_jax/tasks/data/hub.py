"""Data sets of the Hugging Face hub, or of its cache."""

from typing import Any

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.folder import name_hub_split, name_own_split


def download(repository: str, configuration: str | None, task: str) -> Any:
    """Return the splits of a hub data set by name.

    Raises:
        InputError: If the data set cannot be loaded. The message names the task and explains
            offline use.
    """
    # A late import: it takes seconds, and data from a folder needs none of it.
    import datasets

    try:
        return datasets.load_dataset(repository, configuration)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # RuntimeError: older versions of httpx raise it for a closed connection that is used again.
        raise InputError(
            f"{task} cannot be loaded from {repository} on the Hugging Face hub "
            f"({type(error).__name__}: {error}). To work offline give --data-dir a folder that "
            "holds the train and dev files, or load the task once on a machine that reaches the "
            "hub, copy its cache (HF_HOME) here and set HF_HUB_OFFLINE=1"
        ) from error


def take_split(source: Any, name: str, where: str) -> Any:
    """Return a split of `download`'s result by its name here or on the hub.

    Raises:
        InputError: If the hub has no such split.
    """
    if name_hub_split(name) not in source:
        held = ", ".join(map(name_own_split, source))
        raise InputError(
            f"--split {name}: {where} has {held}. Name one of these, or give --file or --data-dir"
        )
    return source[name_hub_split(name)]

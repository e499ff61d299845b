"""All kinds of tasks, and all tasks by name."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from increlora_jax.config import TaskConfig
from increlora_jax.errors import InputError
from increlora_jax.tasks.classification import CLASSIFICATION
from increlora_jax.tasks.kind import Kind, Reader, TaskData, note_shared
from increlora_jax.tasks.question_answering import QUESTION_ANSWERING

READERS = (CLASSIFICATION, QUESTION_ANSWERING)


def find_reader(task: str) -> Reader:
    """Return the reader of a task.

    Raises:
        InputError: If no kind has such a task.
    """
    for reader in READERS:
        if task in reader.tasks:
            return reader
    names = ", ".join(name for reader in READERS for name in reader.tasks)
    raise InputError(f"--task {task}: unknown; the tasks are {names}")


def load_task(config: TaskConfig) -> TaskData:
    """Load the examples of a configuration's task.

    Raises:
        InputError: If the data cannot be used. The message names the place and the remedy.
    """
    data = find_reader(config.task).load(config)
    shared = note_shared(data.train, data.dev) if data.train else []
    return replace(data, notes=(*data.notes, *shared))


def restore_kind(saved: Mapping[str, Any], config: TaskConfig) -> Kind:
    """Return the kind of a trained adapter, bound to the task in the adapter's file.

    Args:
        saved: The content of `adapter_config.json`.
        config: The settings of the run.

    Raises:
        InputError: If the task is unknown, or has another description here.
    """
    return find_reader(saved["task"]).restore(saved, config)

"""A single split for a trained model, whose labels are known."""

from collections.abc import Sequence
from pathlib import Path

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.folder import find_split
from increlora_jax.tasks.data.label_forms import strip_blanks
from increlora_jax.tasks.data.layout import Columns, Layout
from increlora_jax.tasks.data.tables import Table, read_table
from increlora_jax.tasks.demo import DEMO_TASK
from increlora_jax.tasks.glue import GLUE_TASKS, list_layouts
from increlora_jax.tasks.labelled_files import (
    index_labels,
    make_split,
    report_rows,
    report_unread,
)
from increlora_jax.tasks.labelled_texts import Texts, TextTask
from increlora_jax.tasks.telling import describe_task
from increlora_jax.tasks.text import TEXT_COLUMNS


def known_task(name: str, labels: Sequence[str] | None, columns: Sequence[str] = ()) -> TextTask:
    """Return the task of a trained adapter, without any data.

    Args:
        name: The task's name for `--task`.
        labels: The class names in the order of their ids; None for a regression.
        columns: For `text`, its text columns; default: found in the file.

    Raises:
        InputError: If no task has the name, or a GLUE task has other labels.
    """
    if name == "text":
        return describe_task(tuple(columns), None if labels is None else tuple(labels))
    task = DEMO_TASK if name == "demo" else GLUE_TASKS.get(name)
    if task is None:
        raise InputError(f"task {name}: unknown; the tasks are those of --task")
    if task.labels != (None if labels is None else tuple(labels)):
        raise InputError(f"task {name} has the labels {task.labels}, and the adapter {labels}")
    return task


def load_split(
    task: TextTask,
    source: str | Path,
    split: str = "dev",
    *,
    columns: Columns | None = None,
    needs_labels: bool = True,
) -> tuple[Texts, tuple[str, ...]]:
    """Read one file, or the file of one split in a folder.

    Args:
        task: The task, with its labels (see `known_task`).
        source: A file, or a folder.
        split: The split to look for in a folder: `train`, `dev`, `dev_matched`, `test` and so on.
        columns: The names of the file's columns; default: the task's own.
        needs_labels: Whether to refuse a file without labels, or with all labels -1.

    Returns:
        The split, whose `is_labelled` is false without labels; and notes for the user.

    Raises:
        InputError: If the file cannot be used. The message gives file and line.
    """
    path = Path(source)
    if path.is_dir():
        path = find_split(path, split)
    layouts = list_known_layouts(task, columns or Columns())
    unlabelled = [layout.without_label() for layout in layouts]
    ids = index_labels(task) if task.name != "text" else _number(task.labels)
    known = None if task.is_regression else ids
    table = read_table(path, layouts if needs_labels else [*layouts, *unlabelled], known)
    if not needs_labels and table.layout.is_labelled and _hides_labels(table, task):
        table = table.without_label()
    read = make_split(task, table, ids)
    return read, (*report_rows(task, table, read), *report_unread([table]))


def list_known_layouts(task: TextTask, columns: Columns) -> list[Layout]:
    """List the layouts of a labelled file of a task."""
    if task.name in GLUE_TASKS:
        return list_layouts(task, columns)
    if task.columns:
        columns.check_number("the adapter", len(task.columns))
    return columns.make_layouts([task.columns] if task.columns else TEXT_COLUMNS)


def _number(labels: tuple[str, ...] | None) -> dict[str, int]:
    """Number the labels, including those that an older adapter knows with blanks around them."""
    ids = {label: index for index, label in enumerate(labels or ())}
    return {strip_blanks(label): index for label, index in ids.items()} | ids


def _hides_labels(table: Table, task: TextTask) -> bool:
    """Return whether every label is -1, as in the hub's test splits with hidden labels."""
    is_class = task.labels is not None and "-1" not in task.labels
    return is_class and set(table.columns[-1]) == {"-1"}

"""Every task by its name."""

from pathlib import Path

from increlora_jax.errors import InputError
from increlora_jax.tasks.base import TaskData
from increlora_jax.tasks.data.layout import Columns
from increlora_jax.tasks.demo import load_demo
from increlora_jax.tasks.glue import GLUE_TASKS, load_glue
from increlora_jax.tasks.telling import PROBLEM_TYPES
from increlora_jax.tasks.text import load_text


def task_names() -> tuple[str, ...]:
    """Give the names `load_task` knows."""
    return (*GLUE_TASKS, "text", "demo")


def load_task(
    name: str,
    data_dir: str | Path | None,
    problem_type: str = "auto",
    columns: Columns | None = None,
) -> TaskData:
    """Load a task's examples.

    Args:
      name: One of `task_names()`.
      data_dir: The folder of its files. GLUE tasks come from the hub without one; `text` needs
        one; `demo` has its own.
      problem_type: For `text`, one of `telling.PROBLEM_TYPES`.
      columns: The names of the files' columns; default: the task's own.

    Raises:
      InputError: Saying what is wrong, where, and what to do.
    """
    columns = columns or Columns()
    _check_arguments(name, data_dir, problem_type, columns)
    folder = None if data_dir is None else Path(data_dir)
    if name == "demo":
        return load_demo()
    if name == "text" and folder is not None:
        return load_text(folder, problem_type, columns)
    return load_glue(name, folder, columns)


def _check_arguments(
    name: str, data_dir: str | Path | None, problem_type: str, columns: Columns
) -> None:
    if name not in task_names():
        raise InputError(f"--task {name}: unknown; the tasks are {', '.join(task_names())}")
    if problem_type not in PROBLEM_TYPES:
        raise InputError(
            f"--problem-type {problem_type}: unknown; choose from {', '.join(PROBLEM_TYPES)}"
        )
    if name != "text" and problem_type != "auto":
        raise InputError(f"--problem-type is for --task text; leave it out with --task {name}")
    if name == "text" and data_dir is None:
        raise InputError("--task text needs --data-dir with your train and dev files")
    if name == "demo" and data_dir is not None:
        raise InputError("--task demo brings its own data; leave out --data-dir")
    if columns != Columns() and name == "demo":
        raise InputError("--task demo knows its columns; leave out --text-column, --label-column")
    if columns != Columns() and data_dir is None:
        raise InputError("--text-column and --label-column are of files: give --data-dir too")

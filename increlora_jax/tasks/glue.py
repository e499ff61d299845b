"""The nine GLUE tasks, and the ways in which their files lay out the same columns."""

from pathlib import Path

from increlora_jax.tasks.base import Task, TaskData
from increlora_jax.tasks.data.layout import Columns, Layout
from increlora_jax.tasks.folder import load_folder
from increlora_jax.tasks.hub import load_hub

REPOSITORY = "nyu-mll/glue"
"""Where the hub has the tasks."""

_PAIR = ("sentence1", "sentence2")

# Columns, labels and their order are those of nyu-mll/glue on the hub.
GLUE_TASKS = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
        Task("sst2", ("sentence",), ("negative", "positive"), ("accuracy",)),
        Task("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        Task("stsb", _PAIR, None, ("pearson", "spearmanr"), score_range=(0.0, 5.0)),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
        Task(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            dev_splits=("dev_matched", "dev_mismatched"),
        ),
        Task("qnli", ("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",)),
        Task("rte", _PAIR, ("entailment", "not_entailment"), ("accuracy",)),
        Task("wnli", _PAIR, ("not_entailment", "entailment"), ("accuracy",)),
    )
}

# GLUE's files as distributed, where they differ from the hub's columns. QQP's has some questions
# broken over two lines; nobody can put them together again, so both halves are skipped and counted.
_ORIGINAL_LAYOUTS = {
    "cola": Layout(("sentence", "label"), headless=("source", "label", "star", "sentence")),
    "mrpc": Layout(("#1 String", "#2 String", "Quality")),
    "stsb": Layout((*_PAIR, "score")),
    "qqp": Layout(("question1", "question2", "is_duplicate"), skips_broken_rows=True),
    "mnli": Layout((*_PAIR, "gold_label")),
}


def load_glue(name: str, data_dir: Path | None, columns: Columns | None = None) -> TaskData:
    """Load a GLUE task from a folder, or from the hub where none is given.

    Raises:
      InputError: Naming file and line, or how to work without the hub.
    """
    task = GLUE_TASKS[name]
    if data_dir is None:
        return load_hub(task, REPOSITORY)
    return load_folder(task, data_dir, list_layouts(task, columns or Columns()))


def list_layouts(task: Task, columns: Columns) -> list[Layout]:
    """List the layouts a task's files may have: the hub's, then GLUE's own, then sentence1, 2.

    If the user names columns, those are the layout.

    Raises:
      InputError: The task has another number of texts than the user names.
    """
    if columns != Columns():
        columns.check_number(f"--task {task.name}", len(task.columns))
        return columns.make_layouts([task.columns])
    layouts = columns.make_layouts([task.columns])
    if task.name in _ORIGINAL_LAYOUTS:
        layouts.append(_ORIGINAL_LAYOUTS[task.name])
    if task.is_pair and task.columns != _PAIR:
        layouts.append(Layout((*_PAIR, "label")))
    return layouts

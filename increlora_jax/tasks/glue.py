"""The nine GLUE tasks, and the ways in which their files lay out the same columns."""

from pathlib import Path

from increlora_jax.tasks.data.layout import Columns, Layout
from increlora_jax.tasks.folder import load_folder
from increlora_jax.tasks.hub import load_hub
from increlora_jax.tasks.labelled_texts import TextData, TextTask

REPOSITORY = "nyu-mll/glue"
"""Where the hub has the tasks."""

_PAIR = ("sentence1", "sentence2")

# Columns, labels and their order are those of nyu-mll/glue on the hub.
GLUE_TASKS = {
    task.name: task
    for task in (
        TextTask("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
        TextTask("sst2", ("sentence",), ("negative", "positive"), ("accuracy",)),
        TextTask("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        TextTask("stsb", _PAIR, None, ("pearson", "spearmanr"), score_range=(0.0, 5.0)),
        TextTask(
            "qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")
        ),
        TextTask(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            dev_splits=("dev_matched", "dev_mismatched"),
        ),
        TextTask("qnli", ("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",)),
        TextTask("rte", _PAIR, ("entailment", "not_entailment"), ("accuracy",)),
        TextTask("wnli", _PAIR, ("not_entailment", "entailment"), ("accuracy",)),
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


def load_glue(name: str, data_dir: Path | None, columns: Columns | None = None) -> TextData:
    """Load a GLUE task from a folder, or from the hub where none is given.

    Raises:
      InputError: Naming file and line, or how to work without the hub.
    """
    task = GLUE_TASKS[name]
    if data_dir is None:
        return load_hub(task, REPOSITORY)
    return load_folder(task, data_dir, list_layouts(task, columns or Columns()))


def list_layouts(task: TextTask, columns: Columns) -> list[Layout]:
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

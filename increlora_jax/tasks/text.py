"""The user's own data: single texts or pairs, classes or scores, told from the training file."""

from pathlib import Path

from increlora_jax.errors import InputError
from increlora_jax.tasks.base import Task, TaskData
from increlora_jax.tasks.folder import assemble_data, find_split
from increlora_jax.tasks.labels import is_integer, is_number, refuse_empty_labels
from increlora_jax.tasks.records import quote
from increlora_jax.tasks.tables import Layout, Table, read_table

PROBLEM_TYPES = ("auto", "single_label_classification", "regression")

# Pairs come first: a pair's file may well have a column that alone would do for a single text.
TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text",),
    ("sentence",),
)


def load_text(data_dir: Path, problem_type: str = "auto") -> TaskData:
    """Load the user's own data; what was told from the training file stands in the notes.

    Args:
      data_dir: Holds train and dev files with one of `TEXT_COLUMNS` and a column `label`.
      problem_type: One of `PROBLEM_TYPES`. `auto` is a regression if every training label is a
        number and at least one of them is not an integer literal, as in 3.0.

    Raises:
      InputError: Naming file and line.
    """
    layouts = [Layout((*columns, "label")) for columns in TEXT_COLUMNS]
    train = read_table(find_split(data_dir, "train"), layouts)
    dev = read_table(find_split(data_dir, "dev"), [train.layout])
    refuse_empty_labels(train)
    task = _infer_task(train, problem_type)
    ids = {label: index for index, label in enumerate(task.labels or ())}
    data = assemble_data(task, [train, dev], ids)
    return TaskData(task, data.train, data.dev, (_note_task(task, train), *data.notes))


def describe_task(columns: tuple[str, ...], labels: tuple[str, ...] | None) -> Task:
    """Return the task of these text columns and labels; of a regression without labels."""
    return Task(
        "text", columns, labels, ("pearson", "spearmanr") if labels is None else ("accuracy",)
    )


def _infer_task(train: Table, problem_type: str) -> Task:
    columns = train.layout.columns[:-1]
    labels = set(train.columns[-1])
    if problem_type == "auto" and all(map(is_number, labels)) and not all(map(is_integer, labels)):
        problem_type = "regression"
    if problem_type == "regression":
        return describe_task(columns, None)
    if len(labels) == 1:
        raise InputError(
            f"{train.path}: every row has the label {quote(labels.pop())}; give rows of two or more"
        )
    return describe_task(columns, _sort_labels(labels))


def _sort_labels(labels: set[str]) -> tuple[str, ...]:
    if all(map(is_integer, labels)):
        # float, because int() refuses thousands of digits.
        return tuple(sorted(labels, key=lambda label: (float(label), label)))
    return tuple(sorted(labels))


def _note_task(task: Task, train: Table) -> str:
    kind = "regression" if task.is_regression else f"classification into {task.num_labels} labels"
    columns = " and ".join(task.columns)
    return f"{kind} of {columns}, told from {train.path.name}; --problem-type overrides"

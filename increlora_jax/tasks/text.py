"""The user's own data: texts or pairs, classes or scores, inferred from the training file."""

from dataclasses import replace
from pathlib import Path

from increlora_jax.tasks.data.folder import find_split, list_unused
from increlora_jax.tasks.data.labels import refuse_empty_labels
from increlora_jax.tasks.data.layout import Columns
from increlora_jax.tasks.data.tables import read_table
from increlora_jax.tasks.labelled_files import assemble_data
from increlora_jax.tasks.labelled_texts import TextData
from increlora_jax.tasks.telling import note_task, tell_task

# Pairs come first: a pair's file may also have a column that would do for a single text.
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


def load_text(
    data_dir: Path, problem_type: str = "auto", columns: Columns | None = None
) -> TextData:
    """Load the user's own data; the notes describe the inferred task.

    Args:
        data_dir: The folder of the train and dev files.
        problem_type: See `telling.tell_task`.
        columns: The names of the columns; default: one of `TEXT_COLUMNS`, and `label` or `labels`.

    Raises:
        InputError: If the data cannot be used. The message gives file and line.
    """
    columns = columns or Columns()
    paths = [find_split(data_dir, split) for split in ("train", "dev")]
    train = read_table(paths[0], columns.make_layouts(TEXT_COLUMNS))
    refuse_empty_labels(train)
    layouts = replace(columns, texts=train.layout.texts).make_layouts(())
    dev = read_table(paths[1], layouts, set(train.columns[-1]))
    task = tell_task(train, problem_type)
    ids = {label: index for index, label in enumerate(task.labels or ())}
    data = assemble_data(task, [train, dev], ids)
    notes = [*note_task(task, train), *data.notes, *list_unused(data_dir, paths)]
    return data._replace(notes=tuple(notes))

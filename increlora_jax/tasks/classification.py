"""Classification and regression of texts and pairs: one row of logits and one label an example."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from increlora_jax.config import TaskConfig
from increlora_jax.errors import InputError
from increlora_jax.tasks.class_weights import balance, describe_weights
from increlora_jax.tasks.counts import count_split
from increlora_jax.tasks.data.folder import find_split, name_own_split
from increlora_jax.tasks.data.layout import Columns
from increlora_jax.tasks.data.lines import Lines
from increlora_jax.tasks.demo import load_demo
from increlora_jax.tasks.details import describe_split
from increlora_jax.tasks.encoding import encode_texts
from increlora_jax.tasks.glue import GLUE_TASKS, REPOSITORY, load_glue, load_hub_splits
from increlora_jax.tasks.kind import Batch, Encoded, Kind, Reader, TaskData, larger_is_better
from increlora_jax.tasks.labelled_texts import TextData, Texts, TextTask
from increlora_jax.tasks.metrics import score_splits
from increlora_jax.tasks.packing import pack_batch
from increlora_jax.tasks.split import known_task, load_split
from increlora_jax.tasks.telling import PROBLEM_TYPES
from increlora_jax.tasks.text import load_text
from increlora_jax.tasks.text_answers import answer_texts, read_texts, take_texts

TASKS = (*GLUE_TASKS, "text", "demo")
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def load_texts(
    name: str,
    data_dir: str | Path | None,
    problem_type: str = "auto",
    columns: Columns | None = None,
) -> TextData:
    """Load a task's examples.

    Args:
        name: One of `TASKS`.
        data_dir: The folder of the files. Without one, GLUE tasks come from the hub; `text` needs a
            folder; `demo` has its own data.
        problem_type: For `text`, one of `telling.PROBLEM_TYPES`.
        columns: The names of the files' columns; default: the task's own.

    Raises:
        InputError: If the data cannot be used. The message names the place and the remedy.
    """
    columns = columns or Columns()
    _check_arguments(name, data_dir, problem_type, columns)
    folder = None if data_dir is None else Path(data_dir)
    if name == "demo":
        return load_demo()
    if name == "text" and folder is not None:
        return load_text(folder, problem_type, columns)
    return load_glue(name, folder, columns)


def make_kind(
    task: TextTask, dropout: float | None = None, class_weights: np.ndarray | None = None
) -> Kind:
    """Bind the kind to a task.

    Args:
        task: The task.
        dropout: Dropout before the classifier; None: the model's own.
        class_weights: The weight of each class in the training loss [num_labels]; None: all 1.
    """
    return Kind(
        task=task.name,
        dev_splits=task.dev_splits,
        head="sequence_classification",
        head_options={"num_labels": task.num_labels, "classifier_dropout": dropout},
        loading={"match_labels": True, "labels": task.labels},
        labels=task.labels,
        saved={"labels": task.labels, "columns": list(task.columns)},
        find=find_split,
        read=partial(_read, task),
        load_own=partial(_load_own, task),
        encode=partial(_encode, class_weights),
        pack=pack_batch,
        loss=partial(sequence_loss, is_regression=task.is_regression),
        predict=call_model,
        score=lambda predictions, encoded, splits: score_splits(task, predictions, splits),
        examine=lambda logits, encoded, split: describe_split(task, logits, split),
        count=partial(count_split, task),
        metrics=task.metrics,
        is_better=larger_is_better,
        count_tokens=count_tokens,
        **_answering(task),
    )


def _answering(task: TextTask) -> dict[str, Any]:
    """Return the functions that answer texts without labels."""
    return {
        "read_inputs": partial(_read_inputs, task),
        "take_inputs": partial(take_texts, task),
        "answer": partial(answer_texts, task),
    }


def call_model(model: Any, batch: Batch) -> Float[Array, "batch labels"]:
    """Compute the logits of a batch, in at least float32."""
    packed = {"firsts": batch["firsts"]} if "firsts" in batch else {}
    logits = model(*(batch[name] for name in MODEL_INPUTS), **packed)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def sequence_loss(model: Any, batch: Batch, *, is_regression: bool) -> tuple[Array, Array]:
    """Sum cross-entropies of classes, or squared errors of scores, each times its weight.

    Returns:
        The sum of the losses [], and of their weights [].
    """
    logits = call_model(model, batch)
    if is_regression:
        losses = jnp.square(logits[:, 0] - batch["labels"])
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    weight = batch["weight"] * batch.get("class_weight", 1.0)
    return jnp.sum(losses * weight), jnp.sum(weight)


def count_tokens(batch: Batch) -> tuple[Array, Array]:
    """Count the tokens of real examples [], and all positions [] including padding."""
    mask = batch["attention_mask"]
    places = jnp.int32(mask.size)
    if "firsts" in batch:  # a packed mask numbers the examples, and weights belong to examples
        return jnp.sum(mask > 0), places
    return jnp.sum(mask * (batch["weight"] > 0)[..., None]), places


def _load(config: TaskConfig) -> TaskData:
    data = load_texts(config.task, config.data_dir, config.problem_type, _columns_of(config))
    weights, notes = None, data.notes
    if config.class_weights == "balanced":
        weights = balance(data.task, data.train)
        notes = (*notes, describe_weights(data.task, weights))
    return TaskData(make_kind(data.task, config.cls_dropout, weights), data.train, data.dev, notes)


def _encode(
    class_weights: np.ndarray | None,
    split: Texts,
    tokenizer: Any,
    max_length: int,
    name: str = "",
) -> Encoded:
    """Encode a split; the rows of the training split have the weights of their classes."""
    encoded = encode_texts(split, tokenizer, max_length, name)
    if class_weights is None or name != "train":
        return encoded
    return replace(encoded, fixed={**encoded.fixed, "class_weight": class_weights[split.labels]})


def _restore(saved: Mapping[str, Any], config: TaskConfig) -> Kind:
    if "labels" not in saved:
        raise InputError(
            "adapter_config.json: 'labels' is missing; the file is damaged or of another kind"
        )
    task = known_task(saved["task"], saved["labels"], saved.get("columns", ()))
    return make_kind(task, config.cls_dropout)


def _read(task: TextTask, path: Path, config: TaskConfig) -> tuple[Texts, tuple[str, ...]]:
    return load_split(task, path, columns=_columns_of(config))


def _read_inputs(
    task: TextTask, lines: Lines, kind: str, config: TaskConfig, size: int
) -> Iterator[Texts]:
    return read_texts(task, lines, kind, _columns_of(config), size)


def _load_own(task: TextTask, names: Sequence[str]) -> tuple[dict[str, Texts], tuple[str, ...]]:
    """Load splits of a task with bundled data or data on the hub."""
    if task.name in GLUE_TASKS:
        return load_hub_splits(task, REPOSITORY, names)
    data = load_texts(task.name, None)
    held = {**data.dev, "train": data.train}
    for name in names:
        if name_own_split(name) not in held:
            raise InputError(
                f"--split {name}: {task.name} brings {', '.join(held)}. Give --file or --data-dir"
            )
    return {name: held[name_own_split(name)] for name in names}, data.notes


def _columns_of(config: TaskConfig) -> Columns:
    return Columns(tuple(config.text_column or ()), config.label_column)


CLASSIFICATION = Reader(TASKS, _load, _restore)


def _check_arguments(
    name: str, data_dir: str | Path | None, problem_type: str, columns: Columns
) -> None:
    if name not in TASKS:
        raise InputError(f"--task {name}: unknown; the tasks are {', '.join(TASKS)}")
    if problem_type not in PROBLEM_TYPES:
        raise InputError(
            f"--problem-type {problem_type}: unknown. Choose from {', '.join(PROBLEM_TYPES)}"
        )
    if name != "text" and problem_type != "auto":
        raise InputError(f"--problem-type is for --task text. Leave it out with --task {name}")
    if name == "text" and data_dir is None:
        raise InputError("--task text needs --data-dir with your train and dev files")
    if name == "demo" and data_dir is not None:
        raise InputError("--task demo brings its own data. Leave out --data-dir")
    if columns != Columns() and name == "demo":
        raise InputError("--task demo knows its columns. Leave out --text-column, --label-column")
    if columns != Columns() and data_dir is None:
        raise InputError("--text-column and --label-column are of files: give --data-dir too")

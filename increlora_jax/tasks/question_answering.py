"""Extractive question answering, SQuAD v1.1 and v2.0: a span of a context, or no answer."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from increlora_jax.config import TaskConfig
from increlora_jax.errors import InputError
from increlora_jax.tasks.answers import Found, choose_texts, find_answer
from increlora_jax.tasks.classification import MODEL_INPUTS, count_tokens
from increlora_jax.tasks.counts import count_word
from increlora_jax.tasks.data.folder import list_unused
from increlora_jax.tasks.data.hub import download, take_split
from increlora_jax.tasks.data.records import quote
from increlora_jax.tasks.kind import (
    Batch,
    Encoded,
    Kind,
    Metrics,
    Predictions,
    Reader,
    TaskData,
    count_not_finite,
    larger_is_better,
)
from increlora_jax.tasks.squad_files import (
    Questions,
    find_questions,
    read_questions,
    read_unanswered,
    take_columns,
    take_questions,
)
from increlora_jax.tasks.squad_metrics import (
    exact_match,
    f1_score,
    find_best_threshold,
    mean_percent,
)
from increlora_jax.tasks.windows import Windows, encode_windows

V2 = "squad_v2"
TASKS = ("squad", V2)
METRICS = ("f1", "exact_match")
LOWEST = -1e30
"""Score of positions without a token; finite, so that sums stay finite."""


def make_kind(task: str, config: TaskConfig) -> Kind:
    """Bind the kind to a task and the settings of its windows and answers."""
    return Kind(
        task=task,
        dev_splits=("dev",),
        head="question_answering",
        head_options={},
        loading={},
        labels=None,
        saved={},
        find=lambda folder, split: find_questions(folder, split, _VERSIONS[task]),
        read=partial(_read, task),
        load_own=partial(_load_own, task),
        encode=partial(encode_windows, stride=config.doc_stride),
        pack=None,
        loss=span_loss,
        predict=partial(predict, n_best_size=min(config.n_best_size, config.max_seq_length)),
        score=partial(_score_dev, task, config),
        examine=partial(_examine, task, config),
        count=_count,
        metrics=METRICS,
        is_better=larger_is_better,
        count_tokens=count_tokens,
        read_inputs=lambda lines, kind, config, size: read_unanswered(lines, kind, size),
        take_inputs=take_questions,
        answer=partial(_answer, task, config),
        is_one_row=False,
    )


def span_loss(model: Any, batch: Batch) -> tuple[Array, Array]:
    """Sum over rows the mean cross-entropy of start and end, without padding.

    Returns:
        The sum of the losses [], and of the weights [].
    """
    losses, weight = _row_losses(_call_model(model, batch), batch), batch["weight"]
    return jnp.sum(losses * weight), jnp.sum(weight)


def predict(model: Any, batch: Batch, *, n_best_size: int) -> Predictions:
    """Return the best starts and ends of each row, the score of no answer, and the loss.

    Returns:
        `start`, `end` float32 and `start_index`, `end_index` int32 [rows, n_best_size], best first;
            `null`, `loss` float32 [rows].
    """
    scores = _call_model(model, batch)
    null = batch["null_position"][:, None]
    told: dict[str, Array] = {"loss": _row_losses(scores, batch)}
    told["null"] = jnp.take_along_axis(scores[0] + scores[1], null, axis=-1)[:, 0]
    is_token = batch["attention_mask"] > 0
    for name, each in zip(("start", "end"), scores, strict=True):
        missing = max(0, n_best_size - each.shape[-1])
        wide = jnp.pad(
            jnp.where(is_token, each, LOWEST), ((0, 0), (0, missing)), constant_values=LOWEST
        )
        told[name], told[f"{name}_index"] = jax.lax.top_k(wide, n_best_size)
    return told


def _call_model(model: Any, batch: Batch) -> tuple[Array, Array]:
    return model(*(batch[name] for name in MODEL_INPUTS))


def _row_losses(scores: tuple[Array, Array], batch: Batch) -> Array:
    is_token = batch["attention_mask"] > 0
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(
            jnp.where(is_token, each, LOWEST), batch[name]
        )
        for each, name in zip(scores, ("start_positions", "end_positions"), strict=True)
    ]
    return (losses[0] + losses[1]) / 2


def _score_dev(
    task: str,
    config: TaskConfig,
    predictions: Mapping[str, Predictions],
    encoded: Mapping[str, Encoded],
    splits: Mapping[str, Questions],
) -> Metrics:
    (name,) = splits
    return _score(task, config, predictions[name], encoded[name], splits[name])


class Answered(NamedTuple):
    """Answer to a question.

    Attributes:
        id: The question's id.
        answer: A span of the context; "" if the context holds no answer.
        null_odds: The score of no answer minus that of the best span.
    """

    id: str
    answer: str
    null_odds: float


def _answer(
    task: str, config: TaskConfig, predictions: Predictions, encoded: Encoded, split: Questions
) -> list[Answered]:
    found = _find_all(config, predictions, encoded, split)
    texts = choose_texts(found, config.null_score_diff_threshold if task == V2 else None)
    return [
        Answered(row.id, text, one.null_odds)
        for row, text, one in zip(split.rows, texts, found, strict=True)
    ]


def _find_all(
    config: TaskConfig, predictions: Predictions, encoded: Encoded, split: Questions
) -> list[Found]:
    windows = Windows(**encoded.beside)
    return [
        find_answer(
            predictions,
            windows,
            row,
            example.context,
            n_best_size=config.n_best_size,
            max_answer_length=config.max_answer_length,
        )
        for row, example in enumerate(split.rows)
    ]


def _score(
    task: str, config: TaskConfig, predictions: Predictions, encoded: Encoded, split: Questions
) -> Metrics:
    """Compute the official figures in per cent; for v2.0 also those of both sorts of questions."""
    is_v2 = task == V2
    if count_not_finite(predictions):
        known = jax.tree.map(np.nan_to_num, predictions)
        return dict.fromkeys(_score(task, config, known, encoded, split), math.nan)
    found = _find_all(config, predictions, encoded, split)
    texts = choose_texts(found, config.null_score_diff_threshold if is_v2 else None)
    known = [[answer.text for answer in example.answers] for example in split.rows]
    measures = {"f1": f1_score, "exact_match": exact_match}
    each = {name: _measure(f, texts, known, is_v2) for name, f in measures.items()}
    metrics = {name: mean_percent(scores) for name, scores in each.items()}
    if not is_v2:
        return metrics
    has_answer = [bool(answers) for answers in known]
    for sort, wanted in (("HasAns", True), ("NoAns", False)):
        rows = [row for row, has in enumerate(has_answer) if has == wanted]
        for name, short in (("exact_match", "exact"), ("f1", "f1")):
            if rows:
                metrics[f"{sort}_{short}"] = mean_percent([each[name][row] for row in rows])
    odds, is_answered = [one.null_odds for one in found], [bool(one.text) for one in found]
    for name, short in (("exact_match", "exact"), ("f1", "f1")):
        scores = _measure(measures[name], [one.text for one in found], known, is_v2)
        best = find_best_threshold(scores, has_answer, is_answered, odds)
        metrics[f"best_{short}"], metrics[f"best_{short}_thresh"] = best
    return metrics


def _measure(
    measure: Callable[..., float], texts: list[str], known: list[list[str]], is_v2: bool
) -> list[float]:
    return [measure(text, of, is_v2=is_v2) for text, of in zip(texts, known, strict=True)]


def _examine(
    task: str, config: TaskConfig, predictions: Predictions, encoded: Encoded, split: Questions
) -> dict[str, Any]:
    loss = float(np.mean(predictions["loss"], dtype=np.float64))
    counts = {"questions": len(split), "rows": len(encoded), "loss": loss}
    return counts | _score(task, config, predictions, encoded, split)


def _count(split: Questions) -> dict[str, Any]:
    unanswerable = sum(not example.answers for example in split.rows)
    return {
        "source": split.source,
        "rows": len(split),
        "lines": split.num_lines,
        "without_answer": unanswerable,
    }


def _load(config: TaskConfig) -> TaskData:
    kind, names = make_kind(config.task, config), ("train", "dev")
    if config.data_dir is None:
        splits, notes = kind.load_own(names)
    else:
        files = [kind.find(Path(config.data_dir), name) for name in names]
        if files[0] == files[1]:
            raise InputError(f"{files[0]} is train and dev by its name. Give a file for each")
        read = [kind.read(file, config) for file in files]
        splits = {name: split for name, (split, _) in zip(names, read, strict=True)}
        notes = tuple(note for _, told in read for note in told)
        notes = (*notes, *list_unused(Path(config.data_dir), files))
    if kind.count(splits["train"])["without_answer"] == len(splits["train"]):
        raise InputError(f"{splits['train'].source}: no question has an answer to learn from")
    return TaskData(kind, splits["train"], {"dev": splits["dev"]}, notes)


def _load_own(task: str, names: Sequence[str]) -> tuple[dict[str, Questions], tuple[str, ...]]:
    repository = f"rajpurkar/{task}"
    source = download(repository, None, task)
    splits = {
        name: take_columns(take_split(source, name, repository), f"{repository}'s {name}")
        for name in names
    }
    for split in splits.values():
        _check_answers(task, split)
    return splits, tuple(_describe(split) for split in splits.values())


def _restore(saved: Mapping[str, Any], config: TaskConfig) -> Kind:
    return make_kind(saved["task"], config)


def _read(task: str, path: Path, config: TaskConfig) -> tuple[Questions, tuple[str, ...]]:
    split = read_questions(path)
    _check_answers(task, split)
    return split, (_describe(split),)


def _check_answers(task: str, split: Questions) -> None:
    lacking = [example.id for example in split.rows if not example.answers]
    if lacking and task != V2:
        raise InputError(
            f"{split.source}: {count_word(len(lacking), 'question')} without an answer, the first "
            f"{quote(lacking[0])}; --task {V2} is for such, or remove them"
        )


def _describe(split: Questions) -> str:
    lacking = sum(not example.answers for example in split.rows)
    lines = "" if split.num_lines is None else f" of {count_word(split.num_lines, 'line')}"
    return (
        f"{split.source}: {count_word(len(split), 'question')}{lines}; {lacking} without an answer"
    )


_VERSIONS = {"squad": "v1.1", V2: "v2.0"}

QUESTION_ANSWERING = Reader(TASKS, _load, _restore)

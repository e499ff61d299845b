"""Answers as text, from token scores, as in transformers' recipe for SQuAD."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from increlora_jax.tasks.kind import Predictions
from increlora_jax.tasks.windows import Windows


class Candidate(NamedTuple):
    """A possible answer: a range of characters of the context, and the sum of its two scores."""

    start: int
    end: int
    score: float


class Found(NamedTuple):
    """Best answer to a question.

    Attributes:
        text: The best text that is not empty; "" if there is none.
        null_odds: The score of no answer minus that of this text; without a text, minus 0.
    """

    text: str
    null_odds: float


def find_answer(
    predictions: Predictions,
    windows: Windows,
    example: int,
    context: str,
    *,
    n_best_size: int,
    max_answer_length: int,
) -> Found:
    """Find the best answer to a question over all its rows.

    Args:
        predictions: Arrays [rows, …]; see `question_answering.predict`.
        windows: The rows.
        example: The question's index.
        context: Its context.
        n_best_size: Number of candidates to keep.
        max_answer_length: Largest number of tokens of an answer.
    """
    rows = windows.of(example)
    found = [
        c for row in rows for c in _list_candidates(predictions, windows, row, max_answer_length)
    ]
    best = sorted(found, key=lambda c: c.score, reverse=True)[:n_best_size]
    null = min(float(predictions["null"][row]) for row in rows)
    for candidate in best:
        if text := context[candidate.start : candidate.end]:
            return Found(text, null - candidate.score)
    return Found("", null)


def _list_candidates(
    predictions: Predictions, windows: Windows, row: int, max_answer_length: int
) -> Iterator[Candidate]:
    spans = windows.spans[windows.offsets[row] : windows.offsets[row + 1]]
    starts, ends = predictions["start_index"][row], predictions["end_index"][row]
    scores = predictions["start"][row][:, None] + predictions["end"][row]
    lengths = ends - starts[:, None] + 1
    is_span = (lengths >= 1) & (lengths <= max_answer_length)
    is_span &= _is_context(starts, spans)[:, None] & _is_context(ends, spans)
    for first, last in np.argwhere(is_span):
        begin, end = spans[starts[first]][0], spans[ends[last]][1]
        yield Candidate(int(begin), int(end), float(scores[first, last]))


def _is_context(index: np.ndarray, spans: np.ndarray) -> np.ndarray:
    is_token = index < len(spans)
    return is_token & (spans[np.where(is_token, index, 0), 0] >= 0)


def choose_texts(found: Sequence[Found], threshold: float | None) -> list[str]:
    """Return the answers' texts; with a threshold, "" if the null odds exceed it."""
    if threshold is None:
        return [answer.text for answer in found]
    return ["" if answer.null_odds > threshold else answer.text for answer in found]

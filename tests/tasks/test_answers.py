"""Answers from scores, against trying every span of every window."""

import numpy as np
import pytest

from increlora_jax.tasks.answers import Found, choose_texts, find_answer
from increlora_jax.tasks.windows import Windows

CONTEXT = "one two three four five six"
SPANS = [(0, 3), (4, 7), (8, 13), (14, 18), (19, 23), (24, 27)]
SIZES = {"n_best_size": 20, "max_answer_length": 3}


def windows_of(*rows):
    """Make the rows of one question, each a special token and some words of the context."""
    spans = [[(-1, -1), *(SPANS[word] for word in words)] for words in rows]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in spans])])
    joined = np.array([pair for row in spans for pair in row], np.int32)
    return Windows(np.zeros(len(rows), np.int64), joined, offsets)


def predictions_of(starts, ends, null=0.0, size=20):
    """Sort the scores of every token, as the device does."""
    told = {"null": np.full(len(starts), null, np.float32)}
    for name, scores in (("start", starts), ("end", ends)):
        wide = np.full((len(scores), max(size, *map(len, scores))), -1e30, np.float32)
        for row, each in enumerate(scores):
            wide[row, : len(each)] = each
        order = np.argsort(-wide, axis=-1, kind="stable")[:, :size]
        told[f"{name}_index"] = order.astype(np.int32)
        told[name] = np.take_along_axis(wide, order, -1)
    return told


def test_the_best_span_of_all_windows_is_that_of_trying_every_one():
    rows = [(0, 1, 2, 3), (2, 3, 4, 5)]
    random = np.random.default_rng(0)
    for _ in range(40):
        starts, ends = random.normal(size=(2, 2, 5))
        spans = [
            (starts[r][a] + ends[r][b], SPANS[words[a - 1]][0], SPANS[words[b - 1]][1])
            for r, words in enumerate(rows)
            for a in range(1, 5)
            for b in range(a, min(a + 3, 5))
        ]
        score, begin, end = max(spans)
        found = find_answer(
            predictions_of(starts, ends, null=1.5), windows_of(*rows), 0, CONTEXT, **SIZES
        )
        assert found.text == CONTEXT[begin:end]
        assert found.null_odds == pytest.approx(1.5 - score, abs=1e-5)


def test_spans_that_are_backward_too_long_or_no_context_do_not_count():
    # Best: from the special token; then backward; then of four words; at last "two".
    starts = [[9.0, 3.0, 4.0, -9.0, -9.0]]
    ends = [[9.0, 5.0, 2.0, -9.0, 8.0]]
    found = find_answer(predictions_of(starts, ends), windows_of((0, 1, 2, 3)), 0, CONTEXT, **SIZES)
    assert (found.text, found.null_odds) == ("two three four", -12.0)
    short = SIZES | {"max_answer_length": 1}
    found = find_answer(predictions_of(starts, ends), windows_of((0, 1, 2, 3)), 0, CONTEXT, **short)
    assert found.text == "one"


def test_no_answer_is_judged_by_the_window_that_is_least_for_it():
    scores = [[0.0, 1.0], [0.0, 1.0]]
    told = predictions_of(scores, scores)
    told["null"] = np.array([5.0, -1.0], np.float32)
    assert find_answer(told, windows_of((0,), (1,)), 0, CONTEXT, **SIZES) == Found("one", -3.0)


def test_without_any_span_there_is_no_answer():
    scores = [[1.0]]
    found = find_answer(predictions_of(scores, scores), windows_of(()), 0, CONTEXT, **SIZES)
    assert found == Found("", 0.0)


def test_a_threshold_takes_answers_away_and_none_keeps_all():
    found = [Found("a", -1.0), Found("b", 0.5), Found("", 2.0)]
    assert choose_texts(found, 0.0) == ["a", "", ""]
    assert choose_texts(found, 1.0) == ["a", "b", ""]
    assert choose_texts(found, None) == ["a", "b", ""]

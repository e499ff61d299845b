"""EM and F1 by the definition of SQuAD's official evaluation, worked out by hand and at large."""

import random

import pytest

from increlora_jax.tasks.squad_metrics import (
    exact_match,
    f1_score,
    find_best_threshold,
    mean_percent,
    normalize_answer,
)

V1, V2 = {"is_v2": False}, {"is_v2": True}


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Denver Broncos!", "denver broncos"),
        ("a an the", ""),
        ("U.S.A.", "usa"),
        ("theatre and an-other", "theatre and another"),
        ("  Ünïcode—dash ", "ünïcode—dash"),
        ("the\u00a0end", "end"),
    ],
)
def test_case_articles_punctuation_and_blanks_do_not_count(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize("version", [V1, V2], ids=["v1.1", "v2.0"])
def test_the_best_of_several_answers_counts(version):
    answers = ["Denver Broncos", "the Broncos of Denver"]
    assert exact_match("denver broncos.", answers, **version) == 1
    assert exact_match("Broncos", answers, **version) == 0
    assert f1_score("Broncos", answers, **version) == 2 * 1 * 0.5 / 1.5
    assert f1_score("the Denver Broncos team", answers, **version) == pytest.approx(0.8)


def test_words_that_repeat_are_matched_as_often_as_they_stand_there():
    assert f1_score("b b c", ["b c c"], **V1) == pytest.approx(2 / 3)


def test_an_answer_of_articles_alone_is_nothing_to_f1_of_the_first_version():
    assert exact_match("The", ["A"], **V1) == exact_match("The", ["A"], **V2) == 1
    assert f1_score("The", ["A"], **V1) == 0
    assert f1_score("The", ["A"], **V2) == 1


def test_an_answer_of_articles_does_not_count_beside_others_in_the_second_version():
    assert exact_match("", ["a", "b minor"], **V1) == 1
    assert exact_match("", ["a", "b minor"], **V2) == 0


def test_no_answer_is_right_where_there_is_none():
    assert exact_match("", [], **V2) == f1_score("", [], **V2) == 1
    assert exact_match("x", [], **V2) == f1_score("x", [], **V2) == 0
    assert f1_score("", ["x"], **V2) == 0


def test_means_are_in_per_cent():
    assert mean_percent([1.0, 0.5, 0.0]) == 50.0


def test_the_best_threshold_is_that_of_trying_every_one():
    draw = random.Random(3)
    for _ in range(50):
        n = draw.randrange(1, 12)
        odds = [draw.uniform(-5, 5) for _ in range(n)]
        answerable = [draw.random() < 0.6 for _ in range(n)]
        answered = [draw.random() < 0.9 for _ in range(n)]
        scores = [draw.random() if has else 0.0 for has in answerable]

        def score_at(threshold, odds=odds, answerable=answerable, answered=answered, scores=scores):
            """Score every question by itself: answered if its odds are not above the threshold."""
            total = 0.0
            for o, has, told, score in zip(odds, answerable, answered, scores, strict=True):
                is_given = o <= threshold
                total += (score if is_given else 0.0) if has else float(not (is_given and told))
            return 100 * total / len(odds)

        best, threshold = find_best_threshold(scores, answerable, answered, odds)
        assert best == pytest.approx(max(score_at(t) for t in [-9.0, *odds]))
        if threshold in odds:
            assert score_at(threshold) == pytest.approx(best)

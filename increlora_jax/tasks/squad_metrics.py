"""Exact match and F1 of answers, as in SQuAD's official evaluation of v1.1 and v2.0."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def normalize_answer(text: str) -> str:
    """Return the text in lower case, without ASCII punctuation and articles, with single blanks."""
    kept = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def exact_match(prediction: str, answers: Sequence[str], *, is_v2: bool) -> float:
    """Return 1 if a prediction equals one of the answers, both normalized.

    In v2.0, answers of only articles and punctuation count only if there are no others. If no
    answer is left, "" is right.
    """
    return max(float(normalize_answer(prediction) == known) for known in _known(answers, is_v2))


def f1_score(prediction: str, answers: Sequence[str], *, is_v2: bool) -> float:
    """Return the largest F1 of a prediction's words against one of the answers.

    If one side has no words, F1 is 0 in v1.1; in v2.0, F1 is 1 if neither side has any.
    """
    words = normalize_answer(prediction).split()
    return max(_f1(words, known.split(), is_v2) for known in _known(answers, is_v2))


def mean_percent(scores: Sequence[float]) -> float:
    """Return 100·Σ scores / n."""
    return 100.0 * sum(scores) / len(scores)


def find_best_threshold(
    scores: Sequence[float],
    is_answerable: Sequence[bool],
    is_answered: Sequence[bool],
    null_odds: Sequence[float],
) -> tuple[float, float]:
    """Find the best threshold: a question is answered if its null odds do not exceed it.

    Args:
        scores: The score of each question's answer.
        is_answerable: Whether each question has an answer; if not, no answer scores 1.
        is_answered: Whether the predicted answer of each question has any characters.
        null_odds: The score of no answer minus that of an answer, for each question.

    Returns:
        100·(best mean score), and the threshold.
    """
    current = best = float(len(is_answerable) - sum(is_answerable))
    threshold = 0.0
    for row in sorted(range(len(scores)), key=lambda row: null_odds[row]):
        current += scores[row] if is_answerable[row] else -float(is_answered[row])
        if current > best:
            best, threshold = current, null_odds[row]
    return 100.0 * best / len(scores), threshold


def _known(answers: Sequence[str], is_v2: bool) -> list[str]:
    known = [normalize_answer(answer) for answer in answers]
    return ([answer for answer in known if answer] or [""]) if is_v2 else known


def _f1(predicted: list[str], known: list[str], is_v2: bool) -> float:
    if is_v2 and not (predicted and known):
        return float(predicted == known)
    shared = sum((Counter(predicted) & Counter(known)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(known)
    return (2 * precision * recall) / (precision + recall)

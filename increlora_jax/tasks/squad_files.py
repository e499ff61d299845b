"""Questions with answers in a context: SQuAD's JSON, JSON Lines, the hub's columns."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.folder import list_names, name_hub_split, name_own_split
from increlora_jax.tasks.data.json_array import read_json_file
from increlora_jax.tasks.data.lines import Lines
from increlora_jax.tasks.data.records import quote, read_json_records
from increlora_jax.tasks.data.tables import kind_of, take_text

FIELDS = ("id", "question", "context", "answers")
_LISTS = (list, dict)
_READERS = {".json": read_json_file, ".jsonl": read_json_records}


class Answer(NamedTuple):
    """An answer's text, and the index of its first character in the context."""

    text: str
    start: int


class Question(NamedTuple):
    """An example; without answers, its context has none."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]


_Located = tuple[str, Question]


@dataclass(frozen=True, eq=False)
class Questions:
    """Examples of one split; see `kind.Split`."""

    rows: list[Question]
    source: str = ""
    num_lines: int | None = None
    is_labelled: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    def feed(self, digest: "hashlib._Hash") -> None:
        """Feed every example to a digest."""
        digest.update(json.dumps(self.rows).encode())

    def inputs(self) -> Iterable[tuple[str, str]]:
        """Return the question and the context of every example."""
        return ((row.question, row.context) for row in self.rows)


def find_questions(data_dir: Path, split: str, version: str) -> Path:
    """Find the file of a split, whose name contains the split's as a word, as `train-v1.1.json`.

    Args:
        data_dir: The folder.
        split: `train`, `dev` and so on; `validation` means `dev` too.
        version: `v1.1` or `v2.0`, to choose one of several files.

    Raises:
        InputError: If there is no such file, or more than one.
    """
    words = {split.lower(), name_hub_split(split.lower()), name_own_split(split.lower())}
    is_split = re.compile(rf"(?:^|[^a-z])(?:{'|'.join(map(re.escape, words))})(?:$|[^a-z])")
    names = list_names(data_dir)
    found = [n for n in names if is_split.search(n.lower()) and kind_of(n) in _READERS]
    found = [name for name in found if version in name] or found
    if len(found) == 1:
        return data_dir / found[0]
    if found:
        raise InputError(f"{data_dir}: {' and '.join(found)} are both here. Keep one")
    raise InputError(
        f"{data_dir}: no {split} file is here. Add {split}.json in SQuAD's layout, or "
        f"{split}.jsonl with {', '.join(FIELDS)} in every row"
    )


def read_questions(path: Path) -> Questions:
    """Read a file of questions: SQuAD's articles, or rows of `FIELDS`, as JSON or JSON Lines.

    Raises:
        InputError: If the file cannot be used. The message gives file, line and the place in an
            article.
    """
    if kind_of(path.name) not in _READERS:
        raise InputError(f"{path}: questions are read from .json and .jsonl files. Give one")
    lines, is_articles = Lines(path), False
    located: list[_Located] = []
    for line, record in _READERS[kind_of(path.name)](lines):
        if record is None:
            continue
        where = f"{path}:{line}"
        if "paragraphs" in record:
            is_articles = True
            located += _walk(where, record)
        else:
            located.append(_read_row(where, record))
    return _check(path, located, None if is_articles else lines.count)


def read_unanswered(lines: Lines, kind: str, size: int) -> Iterator[Questions]:
    """Read questions in pieces; answers are ignored, and ids may be missing.

    A row has `question` and `context`, or is one of SQuAD's articles.

    Args:
        lines: The file.
        kind: Its ending.
        size: The largest number of rows or articles of a piece.

    Raises:
        InputError: If a line cannot be read; file and line are named.
    """
    if kind not in _READERS:
        raise InputError(f"{lines.path}: questions are read from .json and .jsonl files. Give one")
    found = ((line, record) for line, record in _READERS[kind](lines) if record is not None)
    for first in found:
        rows = [
            _read_unanswered(f"{lines.path}:{line}", str(line), row)
            for line, record in chain([first], islice(found, size - 1))
            for row in _flatten(f"{lines.path}:{line}", record)
        ]
        yield Questions(rows, lines.path.name, is_labelled=False)


def take_questions(rows: Sequence[Any]) -> Questions:
    """Make a split of (question, context) pairs.

    Raises:
        InputError: If a row is no such pair.
    """
    for number, row in enumerate(rows):
        if not (isinstance(row, tuple | list) and len(row) == 2):
            raise InputError(f"question {number}: give a tuple of question and context")
    held = [dict(zip(FIELDS[1:3], row, strict=True)) for row in rows]
    return Questions(
        [_read_unanswered(f"question {n}", str(n), row) for n, row in enumerate(held)],
        is_labelled=False,
    )


def _read_unanswered(where: str, number: str, row: Any) -> Question:
    given = {"id": number, **row} if isinstance(row, dict) else row
    key, text, context = (
        take_text(where, name, _take(where, given, name, object)) for name in FIELDS[:3]
    )
    return Question(key, text, context, ())


def _flatten(where: str, record: Any) -> Iterator[Any]:
    """Yield the rows of an article, or the row itself."""
    if "paragraphs" not in record:
        yield record
        return
    for paragraph in _take(where, record, "paragraphs", list):
        context = _take(where, paragraph, "context", str)
        for entry in _take(where, paragraph, "qas", list):
            yield {**entry, "context": context} if isinstance(entry, dict) else entry


def take_columns(columns: Mapping[str, Sequence[Any]], source: str) -> Questions:
    """Read the columns of a hub data set."""
    rows = zip(*(columns[name] for name in FIELDS), strict=True)
    read = [
        _read_row(f"{source}: row {number}", dict(zip(FIELDS, row, strict=True)))
        for number, row in enumerate(rows, start=1)
    ]
    return Questions([question for _, question in read], source)


def _walk(where: str, article: Any) -> Iterator[_Located]:
    for p, paragraph in enumerate(_take(where, article, "paragraphs", list)):
        place = f"{where}: paragraphs[{p}]"
        context = _take(place, paragraph, "context", str)
        for q, entry in enumerate(_take(place, paragraph, "qas", list)):
            row = {**entry, "context": context} if isinstance(entry, dict) else entry
            yield _read_row(f"{place}.qas[{q}]", row)


def _read_row(where: str, row: Any) -> _Located:
    is_impossible = isinstance(row, dict) and row.get("is_impossible", False)
    if not isinstance(is_impossible, bool):
        raise InputError(f"{where}: is_impossible is {is_impossible!r}. Write true or false")
    given = [] if is_impossible and "answers" not in row else _take(where, row, "answers", _LISTS)
    answers = tuple(_read_answers(where, given))
    if is_impossible and answers:
        raise InputError(f"{where}: is_impossible is true beside answers. Remove one of both")
    key, text, context = (
        take_text(where, name, _take(where, row, name, object)) for name in FIELDS[:3]
    )
    question = Question(key, text, context, answers)
    for answer in answers:
        _check_answer(where, question, answer)
    return where, question


def _read_answers(where: str, given: Any) -> Iterator[Answer]:
    """Read answers: SQuAD's list of objects, or the hub's two lists."""
    if isinstance(given, dict):
        texts, starts = (
            _take(f"{where}: answers", given, n, list) for n in ("text", "answer_start")
        )
        if len(texts) != len(starts):
            raise InputError(
                f"{where}: answers has {len(texts)} of text and {len(starts)} of answer_start. "
                "Give as many of both"
            )
        given = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    for answer in given:
        place = f"{where}: answers"
        yield Answer(_take(place, answer, "text", str), _take(place, answer, "answer_start", int))


def _check_answer(where: str, question: Question, answer: Answer) -> None:
    text, start = answer
    if not text:
        raise InputError(
            f"{where}: the answer has no text; if the context holds no answer, write an empty list "
            "of answers"
        )
    found = question.context[start : start + len(text)] if start >= 0 else ""
    if found != text:
        raise InputError(
            f"{where}: the answer {quote(text)} is not at character {start} of its context, where "
            f"{quote(found)} is. Correct answer_start, which counts characters from 0"
        )


def _check(path: Path, located: list[_Located], num_lines: int | None) -> Questions:
    if not located:
        raise InputError(f"{path}: no questions. Add some")
    first: dict[str, str] = {}
    for where, question in located:
        if question.id in first:
            raise InputError(
                f"{where}: the id {quote(question.id)} is at {first[question.id]} too. Give "
                "every question its own"
            )
        first[question.id] = where
    rows = [question for _, question in located]
    is_labelled = any(question.answers for question in rows)
    return Questions(rows, path.name, num_lines, is_labelled)


def _take(where: str, held: Any, name: str, kind: Any) -> Any:
    value = held.get(name) if isinstance(held, dict) else None
    if value is None or not isinstance(value, kind) or isinstance(value, bool):
        what = "an object is needed" if not isinstance(held, dict) else f"{name} is missing or odd"
        raise InputError(
            f"{where}: {what}; SQuAD's layout is data, paragraphs, qas, with context beside qas; a "
            f"row has {', '.join(FIELDS)}, and answers text and answer_start"
        )
    return value

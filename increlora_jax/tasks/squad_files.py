"""Questions with answers in a text: SQuAD's JSON, JSON Lines, the hub's columns."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.folder import list_names, name_hub_split
from increlora_jax.tasks.data.json_array import read_json_file
from increlora_jax.tasks.data.lines import Lines
from increlora_jax.tasks.data.records import DECODER, RepeatedKeyError, quote, read_json_records
from increlora_jax.tasks.data.tables import kind_of, take_text

FIELDS = ("id", "question", "context", "answers")


class Answer(NamedTuple):
    """A text, and the place of its first character in the context."""

    text: str
    start: int


class Question(NamedTuple):
    """One example; without answers it has none in its context."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, eq=False)
class Questions:
    """The examples of one split; see `kind.Split`."""

    rows: list[Question]
    source: str = ""
    num_lines: int | None = None
    is_labelled: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    def feed(self, digest: "hashlib._Hash") -> None:
        """Feed every example to a digest."""
        digest.update(json.dumps(self.rows).encode())


def find_questions(data_dir: Path, split: str, version: str) -> Path:
    """Find the one file of a split: its name has the split's as a word, as `train-v1.1.json`.

    Args:
      data_dir: The folder.
      split: `train` or `dev`; `validation` is `dev` too.
      version: `v1.1` or `v2.0`, by which one of several files is chosen.

    Raises:
      InputError: There is no such file, or more than one.
    """
    words = "|".join(dict.fromkeys((split, name_hub_split(split))))
    is_split = re.compile(rf"(?:^|[^a-z])(?:{words})(?:$|[^a-z])")
    names = list_names(data_dir)
    found = [n for n in names if is_split.search(n.lower()) and kind_of(n) in (".json", ".jsonl")]
    found = [name for name in found if version in name] or found
    if len(found) == 1:
        return data_dir / found[0]
    if found:
        raise InputError(f"{data_dir}: {' and '.join(found)} are both here; keep one")
    raise InputError(
        f"{data_dir}: no {split} file is here; add {split}.json in SQuAD's layout, or "
        f"{split}.jsonl with {', '.join(FIELDS)} in every row"
    )


def read_questions(path: Path) -> Questions:
    """Read a file of questions: SQuAD's JSON, or rows of `FIELDS` as a JSON array or JSON Lines.

    Raises:
      InputError: Naming the file, and the line or the place in it.
    """
    lines = Lines(path)
    records = _read_articles(path) if kind_of(path.name) == ".json" else None
    if records is None:
        read = read_json_file if kind_of(path.name) == ".json" else read_json_records
        rows = ((f"{path}:{line}", row) for line, row in read(lines) if row is not None)
        records = (_read_row(where, row) for where, row in rows)
        return _check(path, list(records), lines.count)
    return _check(path, list(records), None)


def take_columns(columns: Mapping[str, Sequence[Any]], source: str) -> Questions:
    """Read the columns of a hub data set."""
    rows = zip(*(columns[name] for name in FIELDS), strict=True)
    read = [
        _read_row(f"{source}: row {number}", dict(zip(FIELDS, row, strict=True)))
        for number, row in enumerate(rows, start=1)
    ]
    return Questions([question for _, question in read], source)


_Located = tuple[str, Question]


def _read_articles(path: Path) -> Iterator[_Located] | None:
    """Read SQuAD's own layout; None if the file is an array of rows."""
    text = "".join(line for _, line in Lines(path))
    if text.lstrip().startswith("["):
        return None
    try:
        held = DECODER.decode(text)
    except RepeatedKeyError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    return _walk(str(path), held)


def _walk(path: str, held: Any) -> Iterator[_Located]:
    for a, article in enumerate(_take(path, held, "data", list)):
        for p, paragraph in enumerate(_take(f"{path}: data[{a}]", article, "paragraphs", list)):
            where = f"{path}: data[{a}].paragraphs[{p}]"
            context = _take(where, paragraph, "context", str)
            for q, entry in enumerate(_take(where, paragraph, "qas", list)):
                place = f"{where}.qas[{q}]"
                is_impossible = isinstance(entry, dict) and entry.get("is_impossible") is True
                row = {**entry, "context": context} if isinstance(entry, dict) else entry
                located = _read_row(place, row)
                if is_impossible and located[1].answers:
                    raise InputError(
                        f"{place}: is_impossible is true beside answers; remove one of both"
                    )
                yield located


def _read_row(where: str, row: Any) -> _Located:
    given = _take(where, row, "answers", (list, dict))
    answers = tuple(_read_answers(where, given))
    key, text, context = (
        take_text(where, name, _take(where, row, name, object)) for name in FIELDS[:3]
    )
    question = Question(key, text, context, answers)
    for answer in answers:
        _check_answer(where, question, answer)
    return where, question


def _read_answers(where: str, given: Any) -> Iterator[Answer]:
    """Read answers as SQuAD has them, a list of objects, or as the hub has, two lists."""
    if isinstance(given, dict):
        texts, starts = (
            _take(f"{where}: answers", given, n, list) for n in ("text", "answer_start")
        )
        if len(texts) != len(starts):
            raise InputError(
                f"{where}: answers has {len(texts)} of text and {len(starts)} of answer_start; "
                "give as many of both"
            )
        given = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    for answer in given:
        place = f"{where}: answers"
        yield Answer(_take(place, answer, "text", str), _take(place, answer, "answer_start", int))


def _check_answer(where: str, question: Question, answer: Answer) -> None:
    text, start = answer
    found = question.context[start : start + len(text)] if start >= 0 else ""
    if not text or found != text:
        raise InputError(
            f"{where}: the answer {quote(text)} is not at character {start} of its context, where "
            f"{quote(found)} is; correct answer_start, which counts characters from 0"
        )


def _check(path: Path, located: list[_Located], num_lines: int | None) -> Questions:
    if not located:
        raise InputError(f"{path}: no questions; add some")
    first: dict[str, str] = {}
    for where, question in located:
        if question.id in first:
            raise InputError(
                f"{where}: the id {quote(question.id)} stands at {first[question.id]} too; give "
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

"""Questions with their contexts as rows of tokens: overlapping windows of the context."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.runtime.console import counted
from increlora_jax.tasks.counts import count_word
from increlora_jax.tasks.data.records import quote
from increlora_jax.tasks.encoding import check_tokenizer, token_fields
from increlora_jax.tasks.kind import Encoded
from increlora_jax.tasks.squad_files import Answer, Questions

_CHUNK_SIZE = 256


class Windows(NamedTuple):
    """Rows of the questions: windows of their contexts.

    Attributes:
        example: int64 [rows]; the question of each row, ascending.
        spans: int32 [tokens, 2]; the first and last-plus-one character of each token in the
            context; -1, -1 for tokens outside of a context.
        offsets: int64 [rows + 1]; row i has the tokens `offsets[i]` to `offsets[i + 1]`.
    """

    example: np.ndarray
    spans: np.ndarray
    offsets: np.ndarray

    def of(self, example: int) -> range:
        """Return the rows of a question."""
        first, last = np.searchsorted(self.example, [example, example + 1])
        return range(int(first), int(last))


def encode_windows(
    split: Questions, tokenizer: Any, max_length: int, name: str = "", *, stride: int | str = "auto"
) -> Encoded:
    """Tokenize questions with their contexts, cut into windows that overlap by `stride` tokens.

    Windows and labels equal those of transformers' recipe, with one correction: if an answer begins
    in a window's last token, the recipe misplaces its start.

    Args:
        split: The questions.
        tokenizer: A fast tokenizer.
        max_length: Tokens of a row.
        name: The split's name, for the display of progress.
        stride: Tokens that windows overlap by.

    Returns:
        The rows with their tokens, and the arrays of `Windows` beside them. `start_positions` and
            `end_positions` int32 [rows] are the first and last token of the answer; if the answer
            is not in the row, both equal `null_position` int32 [rows].

    Raises:
        InputError: If the tokenizer is not fast, or a question leaves no room for a context.
    """
    check_tokenizer(tokenizer, tokenizer.num_special_tokens_to_add(pair=True) + 2, max_length)
    chosen = max_length // 3 if isinstance(stride, str) else stride
    rows: list[_Row] = []
    with counted("tokenizing", len(split), f"{name} questions".lstrip()) as advance:
        for start in range(0, len(split), _CHUNK_SIZE):
            last = min(start + _CHUNK_SIZE, len(split))
            rows += _encode_chunk(split, range(start, last), tokenizer, max_length, chosen)
            advance(last - start)
    count = count_word(len(split), f"{name} question".lstrip())
    note = f"{count} in {len(rows)} rows of {max_length} tokens, overlapping by {chosen}"
    return _join(rows, tokenizer, (note,) if len(rows) > len(split) else ())


def _join(rows: Sequence["_Row"], tokenizer: Any, notes: tuple[str, ...]) -> Encoded:
    """Join the arrays of all rows end to end."""
    lengths = np.array([len(row.ids) for row in rows], np.int64)
    ids, types, spans = (
        np.concatenate([getattr(row, name) for row in rows]) for name in ("ids", "types", "spans")
    )
    fields = token_fields(ids, types, lengths, tokenizer)
    labels = np.array([(*row.answer, row.null) for row in rows], np.int32)
    names = ("start_positions", "end_positions", "null_position")
    example = np.array([row.example for row in rows], np.int64)
    windows = Windows(example, spans, fields["input_ids"].offsets)
    return Encoded(fields, dict(zip(names, labels.T, strict=True)), windows._asdict(), notes)


class _Row(NamedTuple):
    """A window: its tokens, their characters, and the answer's place."""

    example: int
    ids: np.ndarray
    types: np.ndarray
    spans: np.ndarray
    null: int
    answer: tuple[int, int]


def _encode_chunk(
    split: Questions, chosen: range, tokenizer: Any, max_length: int, stride: int
) -> Iterator[_Row]:
    questions = [split.rows[i].question.lstrip() for i in chosen]
    _check_room(split, chosen, questions, tokenizer, max_length, stride)
    contexts = [split.rows[i].context for i in chosen]
    is_first = tokenizer.padding_side == "right"  # the question comes first
    texts = (questions, contexts) if is_first else (contexts, questions)
    tokens = tokenizer(
        *texts,
        truncation="only_second" if is_first else "only_first",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    types = tokens.get("token_type_ids")
    for row, ids in enumerate(tokens["input_ids"]):
        example = chosen[tokens["overflow_to_sample_mapping"][row]]
        texts_of = np.array([-1 if t is None else t for t in tokens.sequence_ids(row)])
        is_context = texts_of == int(is_first)
        spans = np.where(is_context[:, None], np.array(tokens["offset_mapping"][row]), -1)
        null = _find_null(ids, tokenizer)
        yield _Row(
            example,
            np.array(ids, np.int32),
            np.array(types[row] if types else [0] * len(ids), np.int32),
            spans.astype(np.int32),
            null,
            _find_span(split.rows[example].answers, spans, np.flatnonzero(is_context), null),
        )


def _check_room(
    split: Questions,
    chosen: range,
    questions: list[str],
    tokenizer: Any,
    max_length: int,
    stride: int,
) -> None:
    ids = tokenizer(questions, add_special_tokens=False, verbose=False)["input_ids"]
    special = tokenizer.num_special_tokens_to_add(pair=True)
    longest = max(range(len(ids)), key=lambda row: len(ids[row]))
    room = max_length - special - len(ids[longest])
    if room <= stride:
        raise InputError(
            f"{split.source}: question {quote(split.rows[chosen[longest]].id)} has "
            f"{len(ids[longest])} tokens, which leave {max(room, 0)} of --max-seq-length "
            f"{max_length} for its context, and windows overlap by --doc-stride {stride}. Lower "
            "--doc-stride, raise --max-seq-length or shorten the question"
        )


def _find_null(ids: list[int], tokenizer: Any) -> int:
    """Return the position for no answer: the first [CLS] or <s>, or position 0 without one."""
    for token in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if token in ids:
            return ids.index(token)
    return 0


def _find_span(
    answers: Sequence[Answer], spans: np.ndarray, context: np.ndarray, null: int
) -> tuple[int, int]:
    """Return the first and last token of the first answer, or the null position twice."""
    if not answers or not len(context):
        return null, null
    begin, end = answers[0].start, answers[0].start + len(answers[0].text)
    starts, ends = spans[context].T
    if starts[0] > begin or ends[-1] < end:
        return null, null
    # If a character has several tokens, all span it, and the last could come before the first.
    places = np.flatnonzero(starts <= begin)[-1], np.flatnonzero(ends >= end)[0]
    return int(context[min(places)]), int(context[max(places)])

"""Encoding of labelled texts as ragged token ids; batches pad them later."""

from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from increlora_jax.errors import InputError
from increlora_jax.runtime.console import counted
from increlora_jax.tasks.kind import Encoded, Ragged
from increlora_jax.tasks.labelled_texts import Texts

# Small enough that a chunk of long documents fits in memory.
_CHUNK_SIZE = 256


def encode_texts(split: Texts, tokenizer: Any, max_length: int, name: str = "") -> Encoded:
    """Tokenize a split with a fast tokenizer, truncating examples to `max_length` tokens.

    The truncation equals the tokenizer's `truncation="longest_first"` on its `truncation_side`: the
    longer text of a pair is cut until both are equally long, then both are.

    Args:
        split: The examples.
        tokenizer: The tokenizer.
        max_length: Largest number of tokens of an example.
        name: The split's name, for the display of progress.

    Returns:
        One row an example, with the fields of `token_fields`, and `labels` [rows].

    Raises:
        InputError: If the tokenizer is not a fast one, or its special tokens alone are too many.
    """
    needed = tokenizer.num_special_tokens_to_add(split.second is not None) + 1
    check_tokenizer(tokenizer, needed + (split.second is not None), max_length)
    chunks = []
    with counted("tokenizing", len(split), f"{name} examples".lstrip()) as advance:
        for start in range(0, len(split), _CHUNK_SIZE):
            chunks.append(_encode_chunk(split, start, tokenizer, max_length))
            advance(len(chunks[-1].lengths))
    ids, types, lengths = (
        np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in ("token_ids", "token_types", "lengths")
    )
    cut = sum(chunk.n_truncated for chunk in chunks)
    return Encoded(
        token_fields(ids, types, lengths, tokenizer),
        {"labels": split.labels},
        notes=_note_cut(cut, len(split), name, max_length, tokenizer.truncation_side),
        num_cut=cut,
    )


def token_fields(
    token_ids: np.ndarray, token_types: np.ndarray, lengths: np.ndarray, tokenizer: Any
) -> dict[str, Ragged]:
    """Return `input_ids`, `attention_mask` and `token_type_ids` of rows of tokens.

    Args:
        token_ids: The ids of all rows, end to end.
        token_types: The type ids of all rows, end to end.
        lengths: Tokens of each row.
        tokenizer: The tokenizer, for its pad token.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # Without a pad token any id will do: the mask hides it.
    pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ones = np.broadcast_to(np.int32(1), len(token_ids))
    return {
        "input_ids": Ragged(token_ids, offsets, pad_id),
        "attention_mask": Ragged(ones, offsets),
        "token_type_ids": Ragged(token_types, offsets),
    }


def check_tokenizer(tokenizer: Any, needed: int, max_length: int) -> None:
    """Check that a tokenizer is a fast one, and that `needed` tokens fit in `max_length`.

    Raises:
        InputError: If one of these does not hold.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} is not a fast tokenizer. Use a model folder that holds "
            "tokenizer.json (save one with AutoTokenizer.from_pretrained(…).save_pretrained(…))"
        )
    if max_length < needed:
        raise InputError(
            f"--max-seq-length {max_length} leaves no room for text: at least {needed}"
        )


def _note_cut(cut: int, rows: int, name: str, max_length: int, side: str) -> tuple[str, ...]:
    where = "" if side == "right" else ", from the left"
    examples = f"{name} examples".lstrip()
    return (f"{cut} of {rows} {examples} cut to {max_length}{where}",) if cut else ()


class _Chunk(NamedTuple):
    token_ids: np.ndarray
    token_types: np.ndarray
    lengths: np.ndarray
    n_truncated: int


def _encode_chunk(split: Texts, start: int, tokenizer: Any, max_length: int) -> _Chunk:
    """Encode `_CHUNK_SIZE` examples from `start` on.

    The tokenizer does not truncate itself: it would also build every cut piece, for a pair in all
    combinations. For two long texts, these need more memory than any machine has.
    """
    chosen = slice(start, start + _CHUNK_SIZE)
    second = None if split.second is None else split.second[chosen]
    tokens = tokenizer(split.first[chosen], second, truncation=False, verbose=False)
    ids = tokens["input_ids"]
    types = tokens.get("token_type_ids") or [[0] * len(row) for row in ids]
    side = tokenizer.truncation_side
    too_long = [row for row, row_ids in enumerate(ids) if len(row_ids) > max_length]
    for row in too_long:
        kept = _choose_kept(tokens.encodings[row].sequence_ids, max_length, side)
        ids[row] = [ids[row][position] for position in kept]
        types[row] = [types[row][position] for position in kept]
    return _Chunk(
        token_ids=np.fromiter(chain.from_iterable(ids), np.int32),
        token_types=np.fromiter(chain.from_iterable(types), np.int32),
        lengths=np.array([len(row) for row in ids], np.int64),
        n_truncated=len(too_long),
    )


def _choose_kept(sequence_ids: list[int | None], max_length: int, side: str) -> np.ndarray:
    """Choose the positions to keep of an example: all special tokens, and a part of each text.

    Args:
        sequence_ids: For each token its text, 0 or 1; None for a special token.
        max_length: Number of tokens to keep.
        side: Side on which a text is cut, `right` or `left`.
    """
    texts = np.array([-1 if text is None else text for text in sequence_ids])
    special, first, second = (np.flatnonzero(texts == text) for text in (-1, 0, 1))
    budget = max_length - len(special)
    shorter = min(len(first), len(second), budget // 2)
    counts = shorter, budget - shorter
    if len(first) > len(second):
        counts = budget - shorter, shorter
    kept = [
        text[:count] if side == "right" else text[max(0, len(text) - count) :]
        for text, count in zip((first, second), counts, strict=True)
    ]
    return np.sort(np.concatenate([special, *kept]))

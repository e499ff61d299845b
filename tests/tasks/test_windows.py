"""Rows of questions against the tokenizer's own windows, labels against the answers' characters."""

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from increlora_jax.errors import InputError
from increlora_jax.tasks.batching import evaluation_batches
from increlora_jax.tasks.squad_files import Answer, Question, Questions, read_questions
from increlora_jax.tasks.windows import Windows, encode_windows

LENGTH, STRIDE = 96, 32


@pytest.fixture(scope="module")
def tokenizer(minilm_dir):
    return AutoTokenizer.from_pretrained(minilm_dir)


@pytest.fixture(scope="module", params=["train-v1.1.partial.json", "cs224n-dev-v2.0.json"])
def split(data_dir, request):
    whole = read_questions(data_dir / "squad" / request.param)
    return replace(whole, rows=whole.rows[:: len(whole) // 150])


def recipe_span(answers, spans, sequence_ids, null):
    """The label by the rules of transformers' recipe, token by token; its slip left out."""
    if not answers:
        return null, null
    begin, end = answers[0].start, answers[0].start + len(answers[0].text)
    tokens = [place for place, text in enumerate(sequence_ids) if text == 1]
    if spans[tokens[0]][0] > begin or spans[tokens[-1]][1] < end:
        return null, null
    first = tokens[0]
    while first <= tokens[-1] and spans[first][0] <= begin:
        first += 1
    last = tokens[-1]
    while last >= tokens[0] and spans[last][1] >= end:
        last -= 1
    return first - 1, last + 1


def test_rows_are_those_of_the_recipe(split, tokenizer):
    encoded = encode_windows(split, tokenizer, LENGTH, stride=STRIDE)
    expected = tokenizer(
        [row.question.lstrip() for row in split.rows],
        [row.context for row in split.rows],
        truncation="only_second",
        max_length=LENGTH,
        stride=STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert len(encoded) == len(expected["input_ids"]) > len(split)
    ((_, batch),) = evaluation_batches(encoded, batch_size=len(encoded), buckets=(LENGTH,))
    order = np.argsort(encoded.lengths, kind="stable")
    fixed, windows = encoded.fixed, Windows(**encoded.beside)
    np.testing.assert_array_equal(windows.example, expected["overflow_to_sample_mapping"])
    for place, row in enumerate(order):
        ids = expected["input_ids"][row]
        for name in ("input_ids", "token_type_ids", "attention_mask"):
            assert batch[name][place, : len(ids)].tolist() == expected[name][row]
        spans, texts = expected["offset_mapping"][row], expected.sequence_ids(row)
        own = windows.spans[windows.offsets[row] : windows.offsets[row + 1]]
        context = [pair if text == 1 else (-1, -1) for pair, text in zip(spans, texts, strict=True)]
        assert list(map(tuple, own)) == context
        label = recipe_span(split.rows[windows.example[row]].answers, spans, texts, 0)
        assert (fixed["start_positions"][row], fixed["end_positions"][row]) == label
        assert batch["start_positions"][place] == label[0]


def test_labels_are_the_answers_where_a_row_holds_them(split, tokenizer):
    encoded = encode_windows(split, tokenizer, LENGTH, stride=STRIDE)
    windows, found = Windows(**encoded.beside), set()
    for row, example in enumerate(windows.example):
        question = split.rows[example]
        first, last = (int(encoded.fixed[f"{n}_positions"][row]) for n in ("start", "end"))
        if first == encoded.fixed["null_position"][row]:
            continue
        spans = windows.spans[windows.offsets[row] : windows.offsets[row + 1]]
        begin, end = spans[first][0], spans[last][1]
        answer = question.answers[0]
        assert begin <= answer.start
        assert answer.start + len(answer.text) <= end
        assert end - begin < len(answer.text) + 20  # whole words may be more than the answer
        found.add(example)
    # Windows overlap by 32 tokens, so that only a longer answer may fit in none.
    answerable = {row for row, question in enumerate(split.rows) if question.answers}
    assert len(found) >= 0.98 * len(answerable)


def test_an_answer_in_the_last_token_of_a_row_begins_there(tokenizer):
    context = "w " * 6 + "end"
    rows = [Question("a", "q", context, (Answer("end", 12),))]
    encoded = encode_windows(Questions(rows), tokenizer, 11, stride=2)
    assert len(encoded) == 1
    assert encoded.lengths.tolist() == [11]  # [CLS] q [SEP], six w, end, [SEP]
    for name in ("start_positions", "end_positions"):
        assert encoded.fixed[name].tolist() == [9]


def test_a_question_without_room_for_a_context_is_named(tokenizer):
    rows = [Question("a", "why " * 20, "x y z", ()), Question("b", "why", "x", ())]
    with pytest.raises(InputError, match=r"'a' has 20 tokens.*Lower --doc-stride"):
        encode_windows(Questions(rows, "dev.json"), tokenizer, 48, stride=25)
    assert len(encode_windows(Questions(rows), tokenizer, 48, stride=24)) == 2


def test_the_overlap_is_a_third_of_the_length_unless_it_is_said(tokenizer):
    rows = [Question("a", "q", "w " * 100, ())]
    (note,) = encode_windows(Questions(rows), tokenizer, 48, "dev").notes
    assert note == "1 dev question in 3 rows of 48 tokens, overlapping by 16"


def test_a_character_of_several_tokens_is_an_answer_of_all_of_them():
    """A tokenizer of bytes: every byte of a character spans it."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    backend = Tokenizer(BPE(vocabulary, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    ends = [("<s>", 0), ("</s>", 1)]
    backend.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="<s>", eos_token="</s>")
    rows = [Question("a", "q", "ab\U0001f600c", (Answer("\U0001f600", 2),))]
    encoded = encode_windows(Questions(rows), tokenizer, 32)
    first, last = (encoded.fixed[f"{name}_positions"][0] for name in ("start", "end"))
    assert last - first == 3  # four bytes
    windows = Windows(**encoded.beside)
    assert windows.spans[first].tolist() == windows.spans[last].tolist() == [2, 3]

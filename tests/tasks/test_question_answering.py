"""Rows of questions against the tokenizer's own windows, labels against the answers' characters."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoTokenizer

from increlora_jax.config import TaskConfig
from increlora_jax.errors import InputError
from increlora_jax.tasks.batching import evaluation_batches
from increlora_jax.tasks.question_answering import encode, make_kind, predict, span_loss
from increlora_jax.tasks.squad_files import Answer, Question, Questions, read_questions

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
    encoded = encode(split, tokenizer, LENGTH, stride=STRIDE)
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
    fixed, windows = encoded.fixed, encoded.beside
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
    encoded = encode(split, tokenizer, LENGTH, stride=STRIDE)
    windows, found = encoded.beside, set()
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
    encoded = encode(Questions(rows), tokenizer, 11, stride=2)
    assert len(encoded) == 1
    assert encoded.lengths.tolist() == [11]  # [CLS] q [SEP], six w, end, [SEP]
    for name in ("start_positions", "end_positions"):
        assert encoded.fixed[name].tolist() == [9]


def test_a_question_without_room_for_a_context_is_named(tokenizer):
    rows = [Question("a", "why " * 20, "x y z", ()), Question("b", "why", "x", ())]
    with pytest.raises(InputError, match=r"'a' has 20 tokens.*lower --doc-stride"):
        encode(Questions(rows, "dev.json"), tokenizer, 48, stride=25)
    assert len(encode(Questions(rows), tokenizer, 48, stride=24)) == 2


def test_the_overlap_is_a_third_of_the_length_unless_it_is_said(tokenizer):
    rows = [Question("a", "q", "w " * 100, ())]
    (note,) = encode(Questions(rows), tokenizer, 48, "dev").notes
    assert note == "1 dev question in 3 rows of 48 tokens, overlapping by 16"


SCORES = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
BATCH = {
    "input_ids": "ids",
    "token_type_ids": "types",
    "attention_mask": jnp.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 6]),
    "start_positions": jnp.array([2, 3, 0]),
    "end_positions": jnp.array([4, 3, 0]),
    "null_position": jnp.array([0, 0, 0]),
    "weight": jnp.array([1.0, 1.0, 0.0]),
}


def answer_fixed(*inputs):
    return tuple(jnp.asarray(scores) for scores in SCORES)


def test_the_loss_is_the_mean_of_both_ends_over_real_tokens_and_rows():
    wide = SCORES.astype(np.float64)
    expected = 0.0
    for row, length in ((0, 6), (1, 4)):
        for scores, name in zip(wide, ("start_positions", "end_positions"), strict=True):
            own = scores[row, :length]
            expected += (np.log(np.exp(own).sum()) - own[BATCH[name][row]]) / 2
    total, weight = span_loss(answer_fixed, BATCH)
    np.testing.assert_allclose(total, expected, rtol=1e-6)  # float32
    assert weight == 2


@pytest.mark.parametrize("n_best_size", [3, 20])
def test_the_best_of_both_ends_are_chosen_among_real_tokens(n_best_size):
    told = predict(answer_fixed, BATCH, n_best_size=n_best_size)
    for scores, name in zip(SCORES, ("start", "end"), strict=True):
        for row, length in ((0, 6), (1, 4)):
            order = np.argsort(-scores[row, :length], kind="stable")[:n_best_size]
            kept = len(order)
            assert told[f"{name}_index"][row, :kept].tolist() == order.tolist()
            np.testing.assert_array_equal(told[name][row, :kept], scores[row, order])
            assert (told[name][row, kept:] < -1e29).all()
    np.testing.assert_allclose(told["null"], SCORES[:, :, 0].sum(axis=0), rtol=1e-6)


def scores_for(encoded, wanted):
    """Make predictions that are certain of the labels of some rows, and of no answer elsewhere."""
    rows = np.arange(len(encoded))
    told = {"loss": np.zeros(len(rows), np.float32), "null": np.where(wanted, -9.0, 9.0)}
    for name in ("start", "end"):
        told[name] = np.full((len(rows), 2), -8.0, np.float32)
        told[name][:, 0] = np.where(wanted, 5.0, -5.0)
        told[f"{name}_index"] = np.stack([encoded.fixed[f"{name}_positions"], 0 * rows], -1)
    return told


def test_certain_scores_reach_every_figure_of_the_second_version(data_dir, tokenizer):
    whole = read_questions(data_dir / "squad" / "cs224n-dev-v2.0.json")
    split = replace(whole, rows=whole.rows[::60])
    kind = make_kind("squad_v2", TaskConfig(task="squad_v2", doc_stride=32))
    encoded = kind.encode(split, tokenizer, 96, "dev")
    wanted = encoded.fixed["start_positions"] != encoded.fixed["null_position"]
    has_answer = np.array([bool(row.answers) for row in split.rows])
    # No answer is judged by the least window, so that a single certain one is enough.
    metrics = kind.score({"dev": scores_for(encoded, wanted)}, {"dev": encoded}, {"dev": split})
    assert metrics["NoAns_exact"] == metrics["NoAns_f1"] == 100.0
    assert metrics["HasAns_f1"] > 90  # tokens may hold more than the answer
    share = has_answer.mean()
    assert metrics["f1"] == pytest.approx(share * metrics["HasAns_f1"] + (1 - share) * 100)
    assert metrics["best_f1"] == pytest.approx(metrics["f1"])
    never = scores_for(encoded, np.zeros_like(wanted))
    metrics = kind.score({"dev": never}, {"dev": encoded}, {"dev": split})
    assert metrics["HasAns_f1"] == 0
    assert metrics["exact_match"] == pytest.approx(100 * (1 - share))


def test_scores_that_are_not_finite_give_no_figure(tokenizer):
    split = Questions([Question("a", "q", "one two", (Answer("two", 4),))])
    kind = make_kind("squad", TaskConfig(task="squad"))
    encoded = kind.encode(split, tokenizer, 32, "dev")
    told = scores_for(encoded, np.ones(1, bool))
    good = kind.score({"dev": told}, {"dev": encoded}, {"dev": split})
    assert good == {"f1": 100.0, "exact_match": 100.0}
    told["null"][0] = np.nan
    spoilt = kind.score({"dev": told}, {"dev": encoded}, {"dev": split})
    assert all(np.isnan(value) for value in spoilt.values())

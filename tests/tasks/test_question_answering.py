"""The loss and the predictions of questions, and the figures made of them."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoTokenizer

from increlora_jax.config import TaskConfig
from increlora_jax.tasks.question_answering import make_kind, predict, span_loss
from increlora_jax.tasks.squad_files import Answer, Question, Questions, read_questions


@pytest.fixture(scope="module")
def tokenizer(minilm_dir):
    return AutoTokenizer.from_pretrained(minilm_dir)


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


def test_every_figure_is_missing_where_a_score_is_not_finite(data_dir, tokenizer):
    whole = read_questions(data_dir / "squad" / "cs224n-dev-v2.0.json")
    split = replace(whole, rows=whole.rows[:20])
    kind = make_kind("squad_v2", TaskConfig(task="squad_v2"))
    encoded = kind.encode(split, tokenizer, 128, "dev")
    told = scores_for(encoded, np.ones(len(encoded), bool))
    good = kind.score({"dev": told}, {"dev": encoded}, {"dev": split})
    told["start"][0, 0] = np.inf
    spoilt = kind.score({"dev": told}, {"dev": encoded}, {"dev": split})
    assert list(spoilt) == list(good)  # so that means over seeds have every figure
    assert all(np.isnan(value) for value in spoilt.values())

"""The loop of a run, over a real model, with what it keeps and logs looked at from outside."""

import json

import jax
import numpy as np
import pytest

from increlora_jax.compose import plan_run, prepare_run
from increlora_jax.parsing import parse_run
from increlora_jax.training.clock import Clock
from increlora_jax.training.logging import METRICS_FILE, RunLog
from increlora_jax.training.loop import LAG, Loop, NonFiniteError, Schedule

STEPS, EVAL_STEPS = 14, 6


@pytest.fixture
def run(short_run):
    return prepare_run(plan_run(parse_run(short_run)))


@pytest.fixture
def train(run, tmp_path):
    """Train, and give the final state, the outcome and what was kept: (step, is_best) → head."""
    kept = []

    def train(batch_at=run.batch_at, logging_steps=1):
        def keep(state, is_best):
            kept.append((int(state.step), is_best, jax.device_get(state.params.head)))

        with RunLog(tmp_path, STEPS, tensorboard=False) as log:
            schedule = Schedule(STEPS, EVAL_STEPS, logging_steps)
            loop = Loop(run.trainer, run.evaluator, batch_at, keep, schedule, log, Clock())
            return loop.run(run.trainer.init(run.parts, seed=7), run.parts.base)

    train.kept = kept
    return train


def lines_of(folder, split):
    lines = map(json.loads, (folder / METRICS_FILE).read_text().splitlines())
    return [line for line in lines if line["split"] == split]


def test_the_last_state_is_kept_last_and_the_best_when_it_is_reached(train, tmp_path):
    state, outcome = train()
    accuracies = {line["step"]: line["accuracy"] for line in lines_of(tmp_path, "dev")}
    assert list(accuracies) == [6, 12, 14]
    records = [
        step
        for step, accuracy in accuracies.items()
        if accuracy > max((a for s, a in accuracies.items() if s < step), default=-1)
    ]
    assert [(step, best) for step, best, _ in train.kept] == [
        *((step, True) for step in records),
        (STEPS, False),
    ]
    assert outcome.best_metrics["accuracy"] == max(accuracies.values())
    assert outcome.metrics["accuracy"] == accuracies[STEPS]
    for name, value in train.kept[-1][2].items():
        np.testing.assert_array_equal(value, state.params.head[name])


def test_rounds_are_noted_though_numbers_are_read_late(train, run):
    state, outcome = train()
    assert list(outcome.rounds) == [2, 4, 6]
    assert max(outcome.rounds) + LAG < STEPS  # so that some were read while training went on
    grown = dict.fromkeys(run.trainer.skeleton.modules, 1)
    for growth in outcome.rounds.values():
        for name, count in growth.items():
            grown[name] += count
    assert grown == {name: int(slots.rank) for name, slots in state.slots.items()}


def test_only_every_nth_step_and_the_last_are_written(train, tmp_path):
    train(logging_steps=5)
    assert [line["step"] for line in lines_of(tmp_path, "train")] == [0, 5, 10, 13]


def test_padding_is_not_counted_as_tokens(train, run, tmp_path):
    train()
    counted = [line["tokens"] for line in lines_of(tmp_path, "train")]
    real = [
        int(batch["attention_mask"][batch["weight"] > 0].sum())
        for batch in map(run.batch_at, range(STEPS))
    ]
    assert counted == [0, *real[1:]]  # the clock of training starts after step 0


@pytest.mark.parametrize("bad", [3, STEPS - 1])
def test_a_step_gone_bad_stops_the_run_with_the_state_before_it(train, run, bad):
    def batch_at(step):
        batch = run.batch_at(step)
        if step == bad:
            batch["weight"] = np.zeros_like(batch["weight"])  # a mean over nothing
        return batch

    with pytest.raises(NonFiniteError, match=rf"step {bad}: the loss is nan.*--learning-rate"):
        train(batch_at)
    step, is_best, head = train.kept[-1]
    assert not is_best
    # Steps dispatched before the bad one's numbers were read are in it; the bad one is not.
    assert bad <= step <= bad + LAG
    assert all(np.isfinite(value).all() for value in head.values())


def test_an_interrupt_keeps_what_was_reached(train, run):
    def batch_at(step):
        if step == 5:
            raise KeyboardInterrupt
        return run.batch_at(step)

    with pytest.raises(KeyboardInterrupt):
        train(batch_at)
    assert [(step, best) for step, best, _ in train.kept] == [(5, False)]

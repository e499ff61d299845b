"""What is noted of one run as its numbers come in."""

import json

import numpy as np
import pytest

from increlora_jax.errors import NonFiniteError
from increlora_jax.methods.base import fixed_method
from increlora_jax.nn.targets import trains_nothing
from increlora_jax.training.journal import Journal
from increlora_jax.training.progress import Progress
from increlora_jax.training.run_log import METRICS_FILE, RunLog
from increlora_jax.training.timetable import Timetable

SCHEDULE = Timetable(10, 5, 3, 5, max_skipped_steps=1)


def calls(schedule, done=0):
    """Where the calls begin that carry out the steps after `done`."""
    begun = []
    while done < schedule.total_steps:
        begun.append(done)
        done = schedule.next_steps(done).stop
    return begun


def test_a_call_carries_out_a_block_that_no_evaluation_cuts():
    schedule = SCHEDULE._replace(total_steps=14, eval_steps=6, steps_per_execution=4)
    assert calls(schedule) == [0, 4, 5, 6, 7, 8, 12, 13]
    assert calls(schedule, done=6) == [6, 7, 8, 12, 13]
    assert calls(schedule._replace(eval_steps=4, total_steps=12)) == [0, 4, 8]
    assert calls(SCHEDULE) == list(range(10))


def test_a_checkpoint_is_due_as_soon_as_its_step_is_passed():
    assert [done for done in (4, 5, 6) if SCHEDULE.is_saved(done, saved=0)] == [5, 6]
    assert [done for done in (8, 9, 10) if SCHEDULE.is_saved(done, saved=8)] == [10]


def method_of(budget=5):
    """A method that wants the optimizer's step 8 scored unless its budget is spent."""
    method = fixed_method("x", "", attach=lambda model, rngs: model, is_trained=trains_nothing)
    return method._replace(
        rank_budget=budget,
        is_finished=lambda total_rank: total_rank == budget,
        is_scored=lambda step, is_finished: step == 8 and not is_finished,
    )


@pytest.fixture
def open_journal(tmp_path):
    """Journals and what they say; their log is closed in the end."""
    with RunLog(tmp_path) as log:

        def opened(name=""):
            said = []
            journal = Journal(Progress(), log, SCHEDULE, method_of(), said.append, name)
            journal.begin({"a": 1, "b": 1}, {"a": 9, "b": 5})
            return journal, said

        yield opened


def numbers(rank=(1, 1), *, is_finite=True, tokens=7):
    named = {"loss": 0.5 if is_finite else np.nan, "orth_loss": 0.25, "grad_norm": 2.0}
    named |= {"learning_rate": 0.1, "total_rank": sum(rank), "is_finite": is_finite}
    return named | {"tokens": tokens, "places": 2 * tokens, "rank": np.array(rank)}


def test_growth_is_noted_by_step_and_module_and_the_budget_as_spent(open_journal):
    journal, _ = open_journal()
    for step, rank in enumerate([(1, 1), (1, 2), (1, 2), (3, 2), (3, 2)]):
        journal.read(step, numbers(rank), is_timed=True)
    assert journal.progress.rounds == {1: {"b": 1}, 3: {"a": 2}}
    assert journal.progress.finished == [3]
    assert journal.take_news() == [f"grows to total rank {n} of 5" for n in (3, 5)]


def test_pruning_is_noted_and_the_budget_met_from_above_may_be_left_again(open_journal):
    journal, _ = open_journal()
    journal.begin({"a": 4, "b": 4}, {"a": 9, "b": 5})
    for step, rank in enumerate([(4, 4), (4, 2), (3, 2), (2, 3), (2, 4), (1, 4)]):
        journal.read(step, numbers(rank), is_timed=True)
    changes = {1: {"b": -2}, 2: {"a": -1}, 3: {"a": -1, "b": 1}, 4: {"b": 1}, 5: {"a": -1}}
    assert journal.progress.rounds == changes
    assert journal.progress.finished == [2, 4, 5]
    shrunk = [f"shrinks to total rank {n} of 5" for n in (6, 5)]
    assert journal.take_news() == [
        *shrunk,
        "moves slots at total rank 5 of 5",
        "grows to total rank 6 of 5",
        "shrinks to total rank 5 of 5",
    ]


def test_only_steps_that_are_timed_count_for_the_speed(open_journal):
    journal, _ = open_journal()
    journal.read(0, numbers(tokens=100), is_timed=False)
    journal.read(1, numbers(tokens=20), is_timed=True)
    assert (journal.progress.tokens, journal.progress.places) == (20, 40)


def test_every_nth_step_and_the_last_are_logged(open_journal, tmp_path):
    journal, _ = open_journal()
    for step in range(10):
        journal.read(step, numbers(), is_timed=True)
    logged = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    logged = [line for line in logged if line["split"] == "train"]
    assert [line["step"] for line in logged] == [0, 3, 6, 9]
    assert set(logged[0]) - {"step", "split"} == {
        *("loss", "orth_loss", "grad_norm", "learning_rate", "total_rank", "tokens")
    }


def test_the_first_metric_decides_what_is_best_and_ties_go_to_the_first(open_journal):
    journal, _ = open_journal("seed-7")
    told = [(5, 0.5, 0.1), (6, 0.5, 0.9), (7, 0.75, 0.0), (8, 0.25, 0.0)]
    best = [journal.note_metrics(step, {"f1": f1, "accuracy": a}) for step, f1, a in told]
    assert best == [True, False, True, False]
    progress = journal.progress
    assert (progress.best_step, progress.evaluated) == (7, 8)
    assert (progress.best_metrics["f1"], progress.metrics["f1"]) == (0.75, 0.25)
    assert journal.take_news()[0] == "seed-7 f1 0.5000, accuracy 0.1000"
    assert journal.take_news() == []


@pytest.mark.parametrize(
    ("threshold", "values", "stops"),
    [
        (0.0, [0.5, 0.6, 0.6, 0.5], 4),  # a tie is no gain
        (0.0, [0.5, 0.4, 0.6, 0.5, 0.5], 5),  # a gain starts the count again
        (0.2, [0.5, 0.6, 0.71], 3),  # the second is the best so far, and the third beats it by 0.11
        (0.2, [0.5, 0.6, 0.9, 0.9], None),
        (0.0, [float("nan"), float("nan"), 0.1], None),
        (0.0, [0.5, float("nan"), float("nan")], 3),
    ],
)
def test_patience_counts_evaluations_as_hugging_face_does(tmp_path, threshold, values, stops):
    table = SCHEDULE._replace(patience=2, threshold=threshold)
    with RunLog(tmp_path) as log:
        journal = Journal(Progress(), log, table, method_of(), str)
        for done, value in enumerate(values, start=1):
            assert not journal.is_stopped
            journal.note_metrics(done, {"accuracy": value})
    assert journal.progress.stopped == stops


def test_steps_that_are_not_finite_count_in_a_row_and_name_the_run(open_journal):
    journal, said = open_journal("seed-7")
    for step, is_finite in enumerate([False, True, False]):
        journal.read(step, numbers(is_finite=is_finite), is_timed=True)
    assert (journal.progress.skipped, journal.progress.skipped_in_a_row) == ([0, 2], 1)
    assert said[0].startswith("seed-7: step 0 is skipped: the loss is nan")
    with pytest.raises(NonFiniteError, match=r"^seed-7: step 3: .* 2 steps in a row"):
        journal.read(3, numbers(is_finite=False), is_timed=True)


def test_closing_brings_the_log_to_disk_and_gives_the_progress(open_journal, tmp_path):
    journal, _ = open_journal()
    journal.read(0, numbers(), is_timed=True)
    progress = journal.close_at(4, 1.5, 0.5)
    assert progress is journal.progress
    assert (progress.step, progress.seconds, progress.training_seconds) == (4, 1.5, 0.5)
    assert progress.log_bytes == (tmp_path / METRICS_FILE).stat().st_size > 0


def test_a_score_that_is_not_finite_is_told_and_never_better(open_journal):
    journal, _ = open_journal()
    scores = [np.nan, np.nan, 0.25, np.nan, 0.5]
    assert [journal.note_metrics(at, {"accuracy": s}) for at, s in enumerate(scores)] == [
        True, False, True, False, True,
    ]  # fmt: skip
    told = journal.take_news()
    assert [" (predictions on dev are not finite: no score" in each for each in told] == [
        True, True, False, True, False,
    ]  # fmt: skip

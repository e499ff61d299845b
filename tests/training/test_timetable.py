"""Calls, evaluations and scored steps of a run, by its timetable."""

from increlora_jax.training.progress import Progress
from increlora_jax.training.timetable import Timetable, wants_score
from tests.training.test_journal import method_of


def scored(progress):
    method = method_of()
    return [
        step for step in range(20) if wants_score(step, progress, method, known_before=step - 2)
    ]


def test_a_step_is_scored_where_the_optimizer_may_be_at_one_that_is_wanted():
    assert scored(Progress()) == [8, 9, 10]  # up to two in flight may have been skipped
    # The second is known of at step 12 only.
    assert scored(Progress(skipped=[1, 9])) == [9, 10, 11, 12]


def test_a_spent_budget_ends_scoring_once_it_is_known():
    assert scored(Progress(finished=[7])) == [8, 9]


def test_a_block_is_cut_where_an_evaluation_or_the_end_falls_inside():
    timetable = Timetable(14, 6, 1, 5, max_skipped_steps=0, steps_per_execution=4)
    done, calls = 0, []
    while done < timetable.total_steps:
        calls.append(timetable.next_steps(done))
        done = calls[-1].stop
    assert [(call.start, call.stop) for call in calls] == [
        (0, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 12), (12, 13), (13, 14)
    ]  # fmt: skip
    assert [at for at in range(1, 15) if timetable.is_evaluated(at)] == [6, 12, 14]
    assert [at for at in range(1, 15) if timetable.is_saved(at, at - 1)] == [5, 10]

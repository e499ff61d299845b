from itertools import product
from math import ceil

import pytest

from increlora_jax.core.pace import Pace, choose_pace, choose_warmup

AUTO = {"top_h": "auto", "init_warmup": "auto", "incre_interval": "auto"}


def pace_of(steps=600, modules=36, grants=36, **given):
    return choose_pace(steps=steps, modules=modules, grants=grants, **(AUTO | given))


def rounds_of(pace, steps, modules, grants):
    """The steps of the rounds that spend the budget."""
    return pace.rounds(steps)[: ceil(grants / min(pace.top_h, modules))]


def test_a_run_of_600_steps_by_hand():
    # 36 grants within steps 30 to 210: 9 rounds of 4 every 20 steps.
    assert pace_of() == Pace(top_h=4, init_warmup=30, incre_interval=20)
    assert rounds_of(pace_of(), 600, 36, 36) == list(range(40, 201, 20))


def test_a_long_run_takes_fifteen_rounds_and_a_short_one_four():
    long = pace_of(50_520, modules=72, grants=72)
    assert len(rounds_of(long, 50_520, 72, 72)) == 15
    short = pace_of(100, modules=72, grants=72)
    assert (short.top_h, short.incre_interval) == (18, 7)


@pytest.mark.parametrize(
    ("steps", "modules", "grants"),
    list(product([10, 30, 100, 465, 600, 5625, 50_520], [1, 6, 36, 72], [1, 5, 36, 72])),
)
def test_the_budget_is_spent_between_5_and_35_percent_of_any_run_that_has_room(
    steps, modules, grants
):
    pace = pace_of(steps, modules, grants)
    rounds, needed = rounds_of(pace, steps, modules, grants), ceil(grants / modules)
    assert len(rounds) * min(pace.top_h, modules) >= grants or needed > steps - 1 - pace.init_warmup
    if needed <= int(0.3 * steps):
        assert 0.05 * steps - 1 <= pace.init_warmup < rounds[0]
        assert rounds[-1] <= max(0.35 * steps, 2)


@pytest.mark.parametrize("given", [{"top_h": 4}, {"init_warmup": 77}, {"incre_interval": 40}])
def test_a_number_given_is_kept_and_the_rest_follows_it(given):
    pace = pace_of(**given)
    assert given.items() <= pace._asdict().items()
    rounds = rounds_of(pace, 600, 36, 36)
    assert len(rounds) * pace.top_h >= 36
    assert rounds[-1] <= pace.init_warmup + 180 + 1


def test_rounds_go_on_beyond_their_share_if_modules_must_grow_more_often_than_it_holds():
    pace = pace_of(30, modules=4, grants=4 * 20)
    assert pace == Pace(top_h=4, init_warmup=1, incre_interval=1)
    assert rounds_of(pace, 30, 4, 80) == list(range(2, 22))


def test_the_last_warmup_leaves_a_step_for_a_round():
    pace = pace_of(40, grants=36, init_warmup=38)
    assert rounds_of(pace, 40, 36, 36) == [39]
    assert pace.top_h == 36


def test_a_budget_that_is_met_already_needs_no_round():
    assert pace_of(grants=0).top_h == 1


def test_warmup_is_a_share_of_the_run_or_the_number_given():
    assert choose_warmup("auto", 600) == 36
    assert choose_warmup("auto", 5) == 0
    assert choose_warmup(7, 600) == 7

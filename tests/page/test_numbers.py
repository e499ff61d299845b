"""Ticks are round, words are short, and shorter curves keep their ends."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from increlora_jax.page.numbers import (
    average,
    format_number,
    format_seconds,
    format_tick,
    list_decades,
    list_ticks,
    shorten,
)

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-9)


@given(NUMBERS, NUMBERS)
def test_ticks_are_few_and_round_and_enclose_the_values(one, other):
    low, high = min(one, other), max(one, other)
    ticks = list_ticks(low, high)
    step = ticks[1] - ticks[0]
    slack = 1e-6 * max(step, abs(low), abs(high), 1e-9)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 7
    if high - low > 1e-6 * max(abs(low), abs(high)):
        digits = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(digits - one) for one in (1, 2, 5)) < 1e-3


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 5000, [0, 1000, 2000, 3000, 4000, 5000]),
        (0.13, 0.71, [0, 0.2, 0.4, 0.6, 0.8]),
        (-3, 4, [-4, -2, 0, 2, 4]),
        (2, 2, [1.9, 1.95, 2, 2.05, 2.1]),
    ],
)
def test_ticks_of_some_ranges(low, high, ticks):
    assert list_ticks(low, high) == pytest.approx(ticks)


def test_decades_enclose_the_values():
    assert list_decades(3e-10, 2e-8) == pytest.approx([1e-10, 1e-9, 1e-8, 1e-7])
    assert list_decades(1.0, 1.0) == [1.0, 10.0]
    assert len(list_decades(1e-30, 1.0)) <= 8


@pytest.mark.parametrize(
    ("value", "step", "words"),
    [
        (0.30000000000000004, 0.1, "0.3"),
        (2000, 500, "2,000"),
        (1_500_000, 500_000, "1.5M"),
        (-0.0, 1, "0"),
        (2e-5, 1e-5, "2e-5"),
        (0.001, 0.0005, "0.0010"),
    ],
)
def test_ticks_have_the_digits_that_they_need(value, step, words):
    assert format_tick(value, step) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (17712, "17,712"),
        (0.5063333, "0.5063"),
        (1e-5, "1e-5"),
        (12345.6, "12,346"),
        (None, "not finite"),
        (math.nan, "not finite"),
        (3.0, "3"),
    ],
)
def test_numbers_have_sensible_digits(value, words):
    assert format_number(value) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(6.99, "6.99 s"), (750, "12.5 min"), (11520, "3.2 h")]
)
def test_durations_have_units(seconds, words):
    assert format_seconds(seconds) == words


def test_a_long_curve_is_short_and_keeps_its_peaks_and_gaps():
    points = [(x, math.sin(x / 50)) for x in range(20_000)]
    points[7_777] = (7_777, 99.0)
    points[12_345] = (12_345, -99.0)
    points[15_000] = (15_000, None)
    short = shorten(points)
    assert len(short) <= 1_100
    assert {(7_777, 99.0), (12_345, -99.0), (15_000, None)} <= set(short)
    assert [x for x, _ in short] == sorted(x for x, _ in short)
    assert shorten(points[:900]) == points[:900]


def test_a_running_mean_leaves_gaps_out():
    points = [(0, 1.0), (1, 3.0), (2, None), (3, 5.0), (4, None), (5, None)]
    assert average(points, 2) == [(0, 1.0), (1, 2.0), (2, 3.0), (3, 5.0), (4, 5.0), (5, None)]

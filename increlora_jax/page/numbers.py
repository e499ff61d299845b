"""Numbers of charts: ticks, their words, and shorter curves."""

import math
from collections.abc import Sequence
from itertools import groupby

from increlora_jax.page.parts import Point

MOST_POINTS = 1000
"""Points of a drawn curve; more would not be seen."""


def list_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers from at most `low` to at least `high`: multiples of 1, 2 or 5 · 10ⁿ.

    There are at most `most` + 2 numbers, and at least two.
    """
    if not high > low:
        pad = abs(low) * 0.05 or 1.0
        low, high = low - pad, high + pad
    step = _round_step((high - low) / most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def list_decades(low: float, high: float, most: int = 6) -> list[float]:
    """Return powers of ten from at most `low` to at least `high`, both positive."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    step = math.ceil((last - first) / most)
    return [10.0**power for power in range(first, last + step, step)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def format_tick(value: float, step: float) -> str:
    """Return a tick's words, with the digits that the distance between ticks needs."""
    if abs(value) >= 1e6:
        return f"{_plain(value / 1e6, step / 1e6)}M"
    if 0 < step < 1e-4:
        return _exponent(f"{value:.3g}")
    return _plain(value, step)


def _plain(value: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return f"{value + 0.0:,.{digits}f}"


def format_number(value: float | None) -> str:
    """Return a number's words: whole numbers in full, others with four digits."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if isinstance(value, int) or (abs(value) >= 1000) or value == round(value):
        return f"{value:,.0f}"
    return _exponent(f"{value:.4g}")


def format_seconds(seconds: float) -> str:
    """Return a duration's words, as "42 s", "12.5 min" or "3.2 h"."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _exponent(text: str) -> str:
    digits, e, power = text.partition("e")
    return f"{digits}e{int(power)}" if e else text


def shorten(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most about `most` points: of each stretch the first gap, lowest and highest."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for _, group in groupby(enumerate(points), lambda pair: pair[0] // size):
        stretch = list(group)
        gaps = [pair for pair in stretch if pair[1][1] is None][:1]
        numbers = [pair for pair in stretch if pair[1][1] is not None]
        ends = [min(numbers, key=_height), max(numbers, key=_height)] if numbers else []
        kept += [point for _, point in sorted({pair[0]: pair for pair in gaps + ends}.values())]
    return kept


def _height(pair: tuple[int, Point]) -> float:
    return pair[1][1] or 0.0


def average(points: Sequence[Point], window: int) -> list[Point]:
    """Return the mean of the last `window` values up to each point; gaps are left out of it."""
    averaged: list[Point] = []
    total, count = 0.0, 0
    for index, (x, y) in enumerate(points):
        total, count = total + (y or 0.0), count + (y is not None)
        old = points[index - window][1] if index >= window else None
        total, count = total - (old or 0.0), count - (old is not None)
        averaged.append((x, total / count if count else None))
    return averaged


def flatten_points(curves: Sequence[Sequence[Point]]) -> list[tuple[float, float]]:
    """Return all points of curves that are no gaps."""
    return [(x, y) for points in curves for x, y in points if y is not None and math.isfinite(y)]

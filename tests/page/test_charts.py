"""Numbers of charts are where the axes say, read back from the drawing."""

import re
from xml.etree import ElementTree

import pytest

from increlora_jax.page.charts import COLORS, HEIGHT, WIDTH, axes_of, draw_bars, draw_lines
from increlora_jax.page.parts import Bar, BarChart, Line, LineChart, Marks


def parse(svg):
    return ElementTree.fromstring(svg)


def numbers(path):
    return [
        tuple(map(float, pair.split()))
        for stroke in path.split("M")[1:]
        for pair in stroke.removesuffix("Z").removesuffix("h0").split("L")
    ]


def ticks_of(svg):
    """Return (value, x) and (value, y) of two ticks of each axis, by the words that are drawn."""
    words = [
        (float(t.text.replace(",", "")), float(t.get("x")), float(t.get("y")), t.get("class"))
        for t in parse(svg).iter("text")
        if t.get("class").startswith("tick")
    ]
    across = [(value, x) for value, x, _, kind in words if "middle" in kind]
    up = [(value, y - 4) for value, _, y, kind in words if "end" in kind]
    return across, up


def scale_back(place, ticks):
    (one, start), (other, stop) = ticks[0], ticks[-1]
    return one + (place - start) / (stop - start) * (other - one)


def test_a_curve_is_read_back_from_its_ticks():
    points = [(0, 0.7), (10, 0.31), (25, 1.15), (100, 0.02)]
    svg = draw_lines(LineChart("Loss", "nats", [Line("a", points)]))
    across, up = ticks_of(svg)
    path = next(p.get("d") for p in parse(svg).iter("path") if "line" in p.get("class"))
    for (x, y), (at, height) in zip(points, numbers(path), strict=True):
        assert scale_back(at, across) == pytest.approx(x, abs=0.05)
        assert scale_back(height, up) == pytest.approx(y, abs=0.001)


def test_a_band_encloses_its_curve_and_goes_there_and_back():
    band = [(0, 1, 3), (10, 2, 6)]
    svg = draw_lines(LineChart("Loss", "", [Line("a", [(0, 2), (10, 4)], band=band)]))
    across, up = ticks_of(svg)
    path = next(p.get("d") for p in parse(svg).iter("path") if "band" in p.get("class"))
    found = [(scale_back(x, across), scale_back(y, up)) for x, y in numbers(path)]
    for pair, expected in zip(found, [(0, 3), (10, 6), (10, 2), (0, 1)], strict=True):
        assert pair == pytest.approx(expected, abs=0.05)


def test_a_gap_lifts_the_pen_and_a_lone_point_is_a_dot():
    svg = draw_lines(LineChart("", "", [Line("", [(0, 1), (1, 2), (2, None), (3, 1), (4, None)])]))
    path = next(p.get("d") for p in parse(svg).iter("path") if "line" in p.get("class"))
    assert path.count("M") == 2
    assert path.endswith("h0")
    assert len(numbers(path)) == 3


def test_rounds_are_marked_at_their_steps():
    lines = [Line("a", [(0, 1), (50, 2)])]
    svg = draw_lines(LineChart("", "", lines, [Marks([10, 20, 60])]))
    across, _ = ticks_of(svg)
    path = next(p.get("d") for p in parse(svg).iter("path") if "mark" in p.get("class"))
    places = [float(x) for x in re.findall(r"M([\d.]+)", path)]
    assert [scale_back(x, across) for x in places] == pytest.approx([10, 20, 60], abs=0.1)


def test_a_logarithmic_axis_leaves_out_zero():
    chart = LineChart("", "", [Line("", [(0, 1e-9), (1, 0.0), (2, 1e-7)])], is_log=True)
    path = next(
        p.get("d") for p in parse(draw_lines(chart)).iter("path") if "line" in p.get("class")
    )
    assert path.count("M") == 2
    _, up = axes_of(chart)
    low, middle, high = (up.place(10.0**power) for power in (-9, -8, -7))
    assert middle == pytest.approx((low + high) / 2)


@pytest.mark.parametrize(
    "points",
    [[], [(0, None)], [(5, 5.0)], [(0, 0.0), (9, 0.0)], [(0, -1e12), (1, 1e12)], [(0, 1e-300)]],
)
def test_any_numbers_stay_on_the_drawing(points):
    for is_log in (False, True):
        svg = draw_lines(LineChart("", "", [Line("a", points)], is_log=is_log))
        for path in (p.get("d") for p in parse(svg).iter("path") if "line" in p.get("class")):
            for x, y in numbers(path):
                assert 0 <= x <= WIDTH
                assert 0 <= y <= HEIGHT


def test_the_words_of_a_chart_are_text_and_its_curves_have_names():
    bad = '<script>alert("&")</script>'
    svg = draw_lines(LineChart(bad, bad, [Line(bad, [(0, 1), (1, 2)], has_dots=True)]))
    root = parse(svg)
    assert not list(root.iter("script"))
    assert root.get("aria-label").startswith(bad)
    assert bad in [title.text for title in root.iter("title")]


def test_bars_are_as_long_as_their_values_and_colors_repeat_dashed():
    svg = draw_bars(BarChart("Time", "s", [Bar("a", 10.0), Bar("<b>", 2.5, COLORS + 1)]))
    one, other = parse(svg).iter("rect")
    assert float(other.get("width")) / float(one.get("width")) == pytest.approx(0.25, abs=0.001)
    assert other.get("class") == "bar c1 again"
    assert "<b>" in [text.text for text in parse(svg).iter("text")]

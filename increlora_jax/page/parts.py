"""Parts of a page: charts, heat maps, tables and figures, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Point = tuple[float, float | None]
"""x and y; None is a gap in the curve."""

COLORS = 8
"""Colors of the palette; curve `COLORS + i` has color i again, dashed."""

Style = Literal["plain", "faint", "thin", "dashed", "muted"]


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        label: its words in the legend; empty: not in the legend.
        points: in the order of x.
        color: an index into the palette.
        band: (x, lowest, highest) around the curve.
        style: faint is for raw values, thin for one of many, dashed for a limit, muted for the
            rest.
        has_dots: whether the points of a short curve are marked.
    """

    label: str
    points: Sequence[Point]
    color: int = 0
    band: Sequence[tuple[float, float, float]] = ()
    style: Style = "plain"
    has_dots: bool = False


@dataclass(frozen=True)
class Marks:
    """Places on the x axis, such as growth rounds; without a color they hold for all curves."""

    places: Sequence[float]
    color: int | None = None


@dataclass(frozen=True)
class LineChart:
    """Curves over one x axis.

    Attributes:
        title: of the chart.
        unit: of y, written above the axis.
        lines: the curves.
        marks: places on the x axis.
        mark_label: the words for marks in the legend.
        x_unit: of x.
        has_zero: whether y begins at 0.
        is_log: whether y is logarithmic; values of at most 0 are then gaps.
        note: a sentence below the chart.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    marks: Sequence[Marks] = ()
    mark_label: str = "growth round"
    x_unit: str = "step"
    has_zero: bool = False
    is_log: bool = False
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """A bar with its words, its length and its color."""

    label: str
    value: float
    color: int = 0


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars from 0, in one unit."""

    title: str
    unit: str
    bars: Sequence[Bar]
    note: str = ""


@dataclass(frozen=True)
class Frame:
    """Values of a heat map at one time, and the words for that time."""

    label: str
    values: dict[str, float]


@dataclass(frozen=True)
class HeatMap:
    """Values of modules over time; the last frame is drawn, a slider chooses another.

    Attributes:
        title: of the map.
        frames: at least one.
        note: a sentence below the map.
    """

    title: str
    frames: Sequence[Frame]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of words under a header; the numbers of marked rows are in `marked`."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A headline number with its label and a remark."""

    label: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Figures:
    """Headline numbers side by side."""

    figures: Sequence[Figure]


Part = LineChart | BarChart | HeatMap | Table | Figures


@dataclass(frozen=True)
class Section:
    """Parts under a heading."""

    title: str
    parts: Sequence[Part]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A page: its title, a line below the title, and sections."""

    title: str
    subtitle: str
    sections: Sequence[Section] = field(default=())

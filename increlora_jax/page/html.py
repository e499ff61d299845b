"""A page as one HTML file that loads nothing: styles and script are inside."""

from collections.abc import Iterator
from html import escape
from importlib.resources import files
from itertools import count

from increlora_jax.page.charts import color_class, draw_bars, draw_lines
from increlora_jax.page.heat import count_rows, draw_heat
from increlora_jax.page.parts import (
    BarChart,
    Figures,
    HeatMap,
    LineChart,
    Page,
    Part,
    Section,
    Table,
)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser itself refuses every request of the page."""


_HEIGHTS = ((24, "taller"), (12, "tall"), (0, "map"))
"""Styles of heat maps by their rows, so that charts fill the space beside a high one."""


def render(page: Page) -> str:
    """Return the page as HTML."""
    numbers = count(1)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(page.title)}</title>",
            f"<style>\n{_load('page.css')}</style>\n</head>\n<body>",
            f"<header><h1>{escape(page.title)}</h1><p>{escape(page.subtitle)}</p></header>",
            "<main>",
            *(_draw_section(section, numbers) for section in page.sections),
            f"</main>\n<script>\n{_load('page.js')}</script>\n</body>\n</html>\n",
        ]
    )


def _load(name: str) -> str:
    return (files("increlora_jax.page") / name).read_text(encoding="utf-8")


def _draw_section(section: Section, numbers: "count[int]") -> str:
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    parts = "\n".join(_draw_part(part, numbers, section.title) for part in section.parts)
    return (
        f'<section>\n<h2>{escape(section.title)}</h2>{note}\n<div class="parts">\n{parts}\n'
        "</div>\n</section>"
    )


def _draw_part(part: Part, numbers: "count[int]", heading: str) -> str:
    match part:
        case Figures():
            return _draw_figures(part)
        case Table():
            kind = "wide" if len(part.header) > 2 or _is_list(part) else "chart"
            title = "" if part.title == heading else part.title
            return _frame(title, _draw_table(part), part.note, kind)
        case HeatMap():
            kind = next(name for rows, name in _HEIGHTS if count_rows(part) >= rows)
            return _frame(part.title, draw_heat(part, next(numbers)), part.note, kind)
        case BarChart():
            return _frame(part.title, draw_bars(part), part.note, "chart")
        case LineChart():
            content = draw_lines(part) + _draw_legend(part)
            return _frame(part.title, content, part.note, "chart")


def _frame(title: str, content: str, note: str, kind: str) -> str:
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
    return f'<figure class="{kind}">{caption}{content}{said}</figure>'


def _draw_legend(chart: LineChart) -> str:
    items = [
        f'<li><i class="key {line.style} {color_class(line.color)}"></i>{escape(line.label)}</li>'
        for line in chart.lines
        if line.label
    ]
    if any(marks.places for marks in chart.marks):
        items.append(f'<li><i class="key mark"></i>{escape(chart.mark_label)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _draw_figures(part: Figures) -> str:
    items = (
        f"<div><dt>{escape(one.label)}</dt><dd>{escape(one.value)}"
        + (f"<small>{escape(one.remark)}</small>" if one.remark else "")
        + "</dd></div>"
        for one in part.figures
    )
    return f'<dl class="figures">{"".join(items)}</dl>'


LISTED = 12
"""Tables of more rows and only two columns are set in several columns."""


def _draw_table(table: Table) -> str:
    kind = ' class="listing"' if _is_list(table) else ""
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(table.title)}">'
        f"<table{kind}>{''.join(_draw_rows(table))}</table></div>"
    )


def _is_list(table: Table) -> bool:
    return len(table.header) == 2 and len(table.rows) > LISTED


def _draw_rows(table: Table) -> Iterator[str]:
    yield "<thead><tr>"
    yield from (f'<th scope="col">{escape(word)}</th>' for word in table.header)
    yield "</tr></thead><tbody>"
    for number, (first, *others) in enumerate(table.rows):
        kind = ' class="marked"' if number in table.marked else ""
        yield f'<tr{kind}><th scope="row">{escape(first)}</th>'
        yield from (f"<td>{escape(word)}</td>" for word in others)
        yield "</tr>"
    yield "</tbody>"

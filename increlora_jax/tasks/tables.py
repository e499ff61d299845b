"""From records to columns: a TSV, CSV or JSONL file as the columns a task reads."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from increlora_jax.errors import InputError
from increlora_jax.tasks.records import (
    quote,
    quote_all,
    read_csv_records,
    read_json_records,
    read_tsv_records,
)

SUFFIXES = (".tsv", ".csv", ".jsonl")
# JSON can spell half of a surrogate pair, which is no text: no tokenizer takes it.
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Layout:
    """One way in which a file may lay out the columns a task reads.

    Attributes:
      columns: The columns to read, in the task's order: its texts, then its label.
      headless: For a file without a header line: all of its columns, in the order of the file.
      skips_broken_rows: Skip and count rows of another width than the header, where other layouts
        make them an error.
      is_labelled: Whether the last of the columns is the label.
    """

    columns: tuple[str, ...]
    headless: tuple[str, ...] = ()
    skips_broken_rows: bool = False
    is_labelled: bool = True

    @property
    def texts(self) -> tuple[str, ...]:
        """The text columns."""
        return self.columns[:-1] if self.is_labelled else self.columns

    def without_label(self) -> "Layout":
        """Return the layout of a file that has the texts alone."""
        return replace(self, columns=self.texts, headless=(), is_labelled=False)


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of a file that a task reads.

    Attributes:
      path: The file.
      layout: The layout it was found to have.
      lines: For each row, the line of the file on which it starts, from 1.
      columns: One list of strings for each of `layout.columns`, as long as `lines`.
      broken_lines: The lines that were skipped.
    """

    path: Path
    layout: Layout
    lines: list[int] = field(default_factory=list)
    columns: tuple[list[str], ...] = ()
    broken_lines: list[int] = field(default_factory=list)

    def locate(self, row: int) -> str:
        """Name a row as file:line."""
        return f"{self.path}:{self.lines[row]}"

    def without_label(self) -> "Table":
        """Return the table without its last column, the label."""
        return replace(self, layout=self.layout.without_label(), columns=self.columns[:-1])


def read_table(path: Path, layouts: Sequence[Layout]) -> Table:
    """Read a file in the first of the layouts whose columns it has.

    Raises:
      InputError: Naming file and line, for anything that is not such a table.
    """
    if path.suffix == ".jsonl":
        table = _read_objects(path, layouts)
    elif path.suffix in SUFFIXES:
        table = _read_delimited(path, layouts)
    else:
        raise InputError(f"{path}: unknown kind of file; give one of {', '.join(SUFFIXES)}")
    if not table.lines:
        raise InputError(f"{path}: no rows of data; add rows of {quote_all(table.layout.columns)}")
    return table


def _read_delimited(path: Path, layouts: Sequence[Layout]) -> Table:
    records = read_tsv_records(path) if path.suffix == ".tsv" else read_csv_records(path)
    first = next(records, None)
    if first is None:
        raise _describe_empty_file(path)
    if not first[1]:
        raise InputError(f"{path}:{first[0]}: nothing where the header should be; name the columns")
    layout, header = _choose_layout(f"{path}:{first[0]}", first[1], layouts)
    rows = chain([first], records) if layout.headless else records
    table = _start_table(path, layout)
    if not layout.skips_broken_rows:
        rows = _refuse_inner_blanks(path, rows)
    places = [header.index(name) for name in layout.columns]
    for line, fields in rows:
        if len(fields) == len(header):
            _append_row(table, line, [fields[place] for place in places])
        elif layout.skips_broken_rows:
            table.broken_lines.append(line)
        else:
            raise _describe_broken_row(table, line, fields, header)
    return table


def _read_objects(path: Path, layouts: Sequence[Layout]) -> Table:
    records = _refuse_inner_blanks(path, read_json_records(path))
    first = next(records, None)
    if first is None:
        raise _describe_empty_file(path)
    with_names = [layout for layout in layouts if not layout.headless]
    layout, _ = _choose_layout(f"{path}:{first[0]}", list(first[1]), with_names)
    table = _start_table(path, layout)
    for line, record in chain([first], records):
        where = f"{path}:{line}"
        missing = [name for name in layout.columns if name not in record]
        if missing:
            raise _describe_missing_columns(where, list(record), [layout])
        values = [_take_text(where, name, record[name]) for name in layout.columns]
        _append_row(table, line, values)
    return table


def _choose_layout(
    where: str, first: list[str], layouts: Sequence[Layout]
) -> tuple[Layout, list[str]]:
    """Find the first layout that fits a file's first record; return it and the file's header."""
    for layout in layouts:
        if layout.headless:
            if len(first) == len(layout.headless) and not set(first) & set(layout.columns):
                return layout, list(layout.headless)
        elif set(layout.columns) <= set(first):
            _refuse_repeated_columns(where, first, layout)
            return layout, first
    raise _describe_missing_columns(where, first, layouts)


def _start_table(path: Path, layout: Layout) -> Table:
    return Table(path, layout, columns=tuple([] for _ in layout.columns))


def _append_row(table: Table, line: int, values: list[str]) -> None:
    table.lines.append(line)
    for column, value in zip(table.columns, values, strict=True):
        column.append(value)


def _take_text(where: str, name: str, value: object) -> str:
    """Read a JSON value as the text that a TSV file would hold in its place."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(
            f"{where}: {quote(name)} is {quote(repr(value))}; write it as a string or a number"
        )
    text = str(value)
    if _SURROGATE.search(text):
        raise InputError(
            f"{where}: {quote(name)} holds half a character (a lone \\ud800 to \\udfff escape); "
            "write both halves, or the character itself in UTF-8"
        )
    return text


def _refuse_inner_blanks(
    path: Path, records: Iterator[tuple[int, Any]]
) -> Iterator[tuple[int, Any]]:
    """Drop blank lines at the end of a file; anywhere else one is a row gone missing."""
    blank = None
    for line, record in records:
        if record is None or record == []:
            blank = blank or line
        elif blank:
            raise InputError(f"{path}:{blank}: a blank line with rows after it; remove it")
        else:
            yield line, record


def _refuse_repeated_columns(where: str, header: list[str], layout: Layout) -> None:
    for name in layout.columns:
        if header.count(name) > 1:
            raise InputError(
                f"{where}: more than one column is called {quote(name)}; rename all but one"
            )


def _describe_empty_file(path: Path) -> InputError:
    return InputError(f"{path}:1: the file is empty; give one with a row for each example")


def _describe_missing_columns(
    where: str, columns: list[str], layouts: Sequence[Layout]
) -> InputError:
    accepted = " or ".join(quote_all(layout.columns) for layout in layouts)
    return InputError(
        f"{where}: the columns here are {quote_all(columns)}, and what is needed is {accepted}; "
        "name the columns so"
    )


def _describe_broken_row(
    table: Table, line: int, fields: list[str], header: list[str]
) -> InputError:
    separator = "tab" if table.path.suffix == ".tsv" else "comma"
    return InputError(
        f"{table.path}:{line}: this row has {len(fields)} fields and the header {len(header)} "
        f"({quote_all(header)}); look for a missing or extra {separator}"
    )

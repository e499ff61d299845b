"""Data files of any kind as the columns that a task reads."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.json_array import read_json_file
from increlora_jax.tasks.data.label_forms import strip_blanks
from increlora_jax.tasks.data.layout import Layout, choose_layout, describe_missing_columns
from increlora_jax.tasks.data.lines import PACKED, Lines
from increlora_jax.tasks.data.parquet import read_parquet_records
from increlora_jax.tasks.data.records import (
    quote,
    quote_all,
    read_csv_records,
    read_json_records,
    read_tsv_records,
)
from increlora_jax.tasks.data.swallowed import refuse_swallowed_rows

TABULAR, PARQUET = (".tsv", ".csv"), ".parquet"
Records = Iterator[tuple[int, dict[str, Any] | None]]
JSON: dict[str, Callable[[Lines], Records]] = {
    ".jsonl": read_json_records,
    ".json": read_json_file,
}
SUFFIXES = (*TABULAR, *JSON, PARQUET)
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
"""Separators of the columns of a .csv file, the usual one first."""

# JSON can encode half of a surrogate pair, which tokenizers do not accept.
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of a file that a task reads.

    Attributes:
        path: The file.
        layout: The layout found in it.
        lines: For each row, the line of the file on which it starts, from 1; or the row's number.
        columns: One list of strings for each of `layout.columns`, as long as `lines`.
        unread: The file's other columns.
        num_lines: The number of lines of the file; None if it has no lines.
        delimiter: The character between columns, of a .tsv or .csv file.
        broken_lines: The lines that were skipped.
        multiline: The lines of the rows whose quoted fields hold line breaks.
        padded: The lines of the rows whose labels had blanks around them.
    """

    path: Path
    layout: Layout
    lines: list[int] = field(default_factory=list)
    columns: tuple[list[str], ...] = ()
    unread: tuple[str, ...] = ()
    num_lines: int | None = None
    delimiter: str = ""
    broken_lines: list[int] = field(default_factory=list)
    multiline: list[int] = field(default_factory=list)
    padded: list[int] = field(default_factory=list)

    def locate(self, row: int) -> str:
        """Return a row's place as file:line."""
        return _locate(self.path, self.lines[row])

    def without_label(self) -> "Table":
        """Return the table without its last column, the label."""
        return replace(self, layout=self.layout.without_label(), columns=self.columns[:-1])


PLAIN = ".txt"
"""Ending of a file with one text a line, which may have no labels."""


def input_kind_of(name: str) -> str:
    """Return the ending that decides how a file without labels is read; "" for an unknown one."""
    is_plain = Path(name.lower().removesuffix(PACKED)).suffix == PLAIN
    return PLAIN if is_plain else kind_of(name)


def kind_of(name: str) -> str:
    """Return the ending that decides how a file is read, in lower case; "" for an unknown one."""
    suffix = Path(name.lower().removesuffix(PACKED)).suffix
    is_readable = suffix in SUFFIXES and not name.lower().endswith(PARQUET + PACKED)
    return suffix if is_readable else ""


def read_table(path: Path, layouts: Sequence[Layout], known: Collection[str] | None = ()) -> Table:
    """Read a file in the first of the layouts whose columns it has.

    Args:
        path: The file.
        layouts: The possible layouts.
        known: The labels known from elsewhere, to detect swallowed rows; None for scores.

    Raises:
        InputError: If the file is no such table. The message gives file and line.
    """
    kind = kind_of(path.name)
    lines = Lines(path)
    if kind in TABULAR:
        table = _read_delimited(lines, kind, layouts, known)
    elif kind in JSON:
        table = replace(_read_objects(path, JSON[kind](lines), layouts), num_lines=lines.count)
    elif kind == PARQUET:
        table = _read_objects(path, read_parquet_records(path), layouts)
    else:
        raise _describe_unknown(path, SUFFIXES)
    if not table.lines:
        raise InputError(f"{path}: no rows of data. Add rows of {quote_all(table.layout.columns)}")
    return _strip_labels(table) if table.layout.is_labelled else table


def read_pieces(lines: Lines, kind: str, layouts: Sequence[Layout], size: int) -> Iterator[Table]:
    """Read a file without labels in pieces of at most `size` rows; a .json file is read whole.

    Args:
        lines: The file.
        kind: Its ending, one of `SUFFIXES` or `PLAIN`.
        layouts: The possible layouts, which have no labels.
        size: The largest number of rows.

    Raises:
        InputError: As `read_table` raises.
    """
    if kind in TABULAR:
        empty, header, records = _open_delimited(lines, kind, layouts)
        yield from _cut(empty, records, partial(_take_rows, header=header), size)
    elif kind in (PLAIN, PARQUET, *JSON):
        if kind == PLAIN:
            read = _read_plain(lines, layouts)
        else:
            read = JSON[kind](lines) if kind in JSON else read_parquet_records(lines.path)
        empty, objects = _open_objects(lines.path, read, layouts)
        yield from _cut(empty, objects, _take_objects, size)
    else:
        raise _describe_unknown(lines.path, (*SUFFIXES, PLAIN))


def _read_plain(lines: Lines, layouts: Sequence[Layout]) -> Records:
    single = next((layout.columns for layout in layouts if len(layout.columns) == 1), None)
    if single is None:
        raise InputError(
            f"{lines.path}: a line is one text, and this model takes pairs. Give a .jsonl file"
        )
    for line, text in lines:
        yield line, {single[0]: text.removesuffix("\n").removesuffix("\r")}


def _describe_unknown(path: Path, suffixes: Sequence[str]) -> InputError:
    return InputError(
        f"{path}: unknown kind of file. Give one of {', '.join(suffixes)} (text also with {PACKED} "
        "after it)"
    )


def _cut(
    empty: Table, rows: Iterator[Any], take: Callable[[Table, Iterator[Any]], object], size: int
) -> Iterator[Table]:
    for first in rows:
        piece = replace(empty, lines=[], columns=tuple([] for _ in empty.columns))
        take(piece, chain([first], islice(rows, size - 1)))
        yield piece


def _read_delimited(
    lines: Lines, kind: str, layouts: Sequence[Layout], known: Collection[str] | None
) -> Table:
    table, header, rows = _open_delimited(lines, kind, layouts)
    multiline = _take_rows(table, rows, header)
    table.multiline.extend(line for line, _ in multiline)
    layout = table.layout
    if layout.is_labelled:
        refuse_swallowed_rows(
            lines.path,
            multiline,
            label_place=header.index(layout.columns[-1]),
            delimiter=table.delimiter,
            labels=set(table.columns[-1]),
            known=known,
        )
    return replace(table, num_lines=lines.count)


def _open_delimited(
    lines: Lines, kind: str, layouts: Sequence[Layout]
) -> tuple[Table, list[str], Iterator[tuple[int, list[str]]]]:
    """Return an empty table, the header, and the rows."""
    path = lines.path
    delimiter = "\t" if kind == ".tsv" else _choose_delimiter(path, layouts)
    records = read_tsv_records(lines) if kind == ".tsv" else read_csv_records(lines, delimiter)
    first = next(records, None)
    if first is None:
        raise _describe_empty_file(path)
    if not first[1]:
        raise InputError(f"{path}:{first[0]}: nothing where the header should be. Name the columns")
    layout, header = choose_layout(f"{path}:{first[0]}", first[1], layouts)
    rows = chain([first], records) if layout.headless else records
    table = _start_table(path, layout, [] if layout.headless else header)
    if not layout.skips_broken_rows:
        rows = _refuse_inner_blanks(path, rows)
    return replace(table, delimiter=delimiter), header, rows


def _choose_delimiter(path: Path, layouts: Sequence[Layout]) -> str:
    """Choose the separator whose header has the columns; if several or none do, the comma."""
    # Without a header, the separator cannot be known for certain.
    wanted = [set(layout.columns) for layout in layouts if not layout.headless]
    for delimiter in DELIMITERS:
        try:
            _, header = next(read_csv_records(Lines(path), delimiter), (1, []))
        except InputError:  # raised again when the file is read with the comma
            continue
        if any(names <= set(header) for names in wanted):
            return delimiter
    return ","


def _take_rows(
    table: Table, rows: Iterator[tuple[int, list[str]]], header: list[str]
) -> list[tuple[int, list[str]]]:
    """Fill a table with rows; return those with a line break in a field."""
    places = [header.index(name) for name in table.layout.columns]
    multiline = []
    for line, fields in rows:
        if len(fields) == len(header):
            _append_row(table, line, [fields[place] for place in places])
            if any("\n" in value for value in fields):
                multiline.append((line, fields))
        elif table.layout.skips_broken_rows:
            table.broken_lines.append(line)
        else:
            raise _describe_broken_row(table, line, fields, header)
    return multiline


def _read_objects(path: Path, records: Records, layouts: Sequence[Layout]) -> Table:
    table, rows = _open_objects(path, records, layouts)
    names = _take_objects(table, rows)
    layout = table.layout
    return replace(table, unread=tuple(name for name in names if name not in layout.columns))


def _open_objects(
    path: Path, records: Records, layouts: Sequence[Layout]
) -> tuple[Table, Iterator[tuple[int, dict[str, Any]]]]:
    """Return an empty table and the rows."""
    rows = _refuse_inner_blanks(path, records)
    first = next(rows, None)
    if first is None:
        raise _describe_empty_file(path)
    with_names = [layout for layout in layouts if not layout.headless]
    layout, _ = choose_layout(_locate(path, first[0]), list(first[1]), with_names)
    return _start_table(path, layout, []), chain([first], rows)


def _take_objects(table: Table, rows: Iterator[tuple[int, dict[str, Any]]]) -> list[str]:
    """Fill a table with objects; return the names in them."""
    names: dict[str, None] = {}
    layout = table.layout
    for line, record in rows:
        where = _locate(table.path, line)
        missing = [name for name in layout.columns if name not in record]
        if missing:
            raise describe_missing_columns(where, list(record), [layout])
        names |= dict.fromkeys(record)
        texts = [take_text(where, name, record[name]) for name in layout.texts]
        label = layout.columns[len(texts) :]
        _append_row(table, line, [*texts, *(take_label(where, n, record[n]) for n in label)])
    return list(names)


def _start_table(path: Path, layout: Layout, header: list[str]) -> Table:
    unread = tuple(name for name in header if name not in layout.columns)
    return Table(path, layout, columns=tuple([] for _ in layout.columns), unread=unread)


def _append_row(table: Table, line: int, values: list[str]) -> None:
    table.lines.append(line)
    for column, value in zip(table.columns, values, strict=True):
        column.append(value)


def _strip_labels(table: Table) -> Table:
    """Remove the invisible blanks around labels, and note their lines."""
    given = table.columns[-1]
    labels = [strip_blanks(label) for label in given]
    pairs = zip(table.lines, given, labels, strict=True)
    padded = [line for line, old, new in pairs if old != new]
    return replace(table, columns=(*table.columns[:-1], labels), padded=padded)


def take_label(where: str, name: str, value: object) -> str:
    """Return a JSON value as a label's text; a boolean is the class `true` or `false`.

    Raises:
        InputError: As `take_text` raises.
    """
    return str(value).lower() if isinstance(value, bool) else take_text(where, name, value)


def take_text(where: str, name: str, value: object) -> str:
    """Return a JSON value as the text that a TSV file would hold.

    Raises:
        InputError: If it is neither a string nor a number, or holds half a character.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(
            f"{where}: {quote(name)} is {quote(repr(value))}. Write it as a string or a number"
        )
    text = str(value)
    if _SURROGATE.search(text):
        raise InputError(
            f"{where}: {quote(name)} holds half a character (a lone \\ud800 to \\udfff escape). "
            "Write both halves, or the character itself in UTF-8"
        )
    return text


def _locate(path: Path, line: int) -> str:
    return f"{path}: row {line}" if kind_of(path.name) == PARQUET else f"{path}:{line}"


def _refuse_inner_blanks(
    path: Path, records: Iterator[tuple[int, Any]]
) -> Iterator[tuple[int, Any]]:
    """Drop blank lines at the end of a file; raise an error for one before a row."""
    blank = None
    for line, record in records:
        if record is None or record == []:
            blank = blank or line
        elif blank:
            raise InputError(f"{path}:{blank}: a blank line with rows after it. Remove it")
        else:
            yield line, record


def _describe_empty_file(path: Path) -> InputError:
    return InputError(f"{path}:1: the file is empty. Give one with a row for each example")


def _describe_broken_row(
    table: Table, line: int, fields: list[str], header: list[str]
) -> InputError:
    return InputError(
        f"{table.path}:{line}: this row has {len(fields)} fields and the header {len(header)} "
        f"({quote_all(header)}). Look for a missing or extra {DELIMITERS[table.delimiter]}"
    )

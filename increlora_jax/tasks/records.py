r"""From bytes to records: the lines of a file, split into fields, each with its line number.

Lines end at "\n" alone (a "\r" before it is dropped) whatever else Unicode calls a line break, so
line numbers are those of every text editor. Nothing is guessed: what is not UTF-8 is an error.
"""

import codecs
import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from increlora_jax.errors import InputError

# csv keeps its limit in a C long, which is 32 bits wide on some machines.
_LONGEST_CSV_FIELD = 2**31 - 1
_LONGEST_QUOTE = 60
_MOST_QUOTES = 20


def quote(value: str) -> str:
    """Show a value from a file in a message: escaped, quoted, and cut to a readable length."""
    if len(value) > _LONGEST_QUOTE:
        return f"{value[:_LONGEST_QUOTE]!r}… ({len(value)} characters)"
    return repr(value)


def quote_all(values: Sequence[str]) -> str:
    """Show several values in a message, cutting a long list too."""
    shown = ", ".join(quote(value) for value in values[:_MOST_QUOTES])
    more = len(values) - _MOST_QUOTES
    return f"{shown} and {more} more" if more > 0 else shown


def read_tsv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, fields), split at tabs alone: GLUE's quotes are text and need not balance.

    A blank line has no fields.
    """
    for line, text in _read_lines(path):
        row = text.removesuffix("\n").removesuffix("\r")
        yield line, row.split("\t") if row else []


def read_csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, fields); a quoted field may hold commas, quotes and line breaks.

    A blank line has no fields.
    """
    # Strict, because otherwise a quote left open swallows the rest of the file as one field.
    reader = csv.reader((text for _, text in _read_lines(path)), strict=True)
    line = 1
    with _lift_csv_field_limit():
        try:
            for fields in reader:
                yield line, fields
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(
                f"{path}:{line}: the row that starts here is not valid CSV ({error}); "
                'quote the field and double each " within it, or save the file as .tsv'
            ) from error


def read_json_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield (line, object) of a file with one JSON object a line; None for a blank line."""
    for line, text in _read_lines(path):
        if not text.strip():
            yield line, None
            continue
        try:
            record = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}:{line}: not valid JSON ({error}); write one JSON object a line"
            ) from error
        if not isinstance(record, dict):
            raise InputError(
                f"{path}:{line}: a JSON {type(record).__name__} where an object is needed; "
                'write one object a line, such as {"sentence": "…", "label": "…"}'
            )
        yield line, record


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                yield line, _decode_line(path, line, raw)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a readable file"
        ) from error


def _decode_line(path: Path, line: int, raw: bytes) -> str:
    if line == 1:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}:{line}: byte {error.start + 1} of this line (0x{raw[error.start]:02x}) is not "
            "UTF-8; save the file as UTF-8, for example with iconv -t UTF-8"
        ) from error
    if "\0" in text:
        raise InputError(
            f"{path}:{line}: byte {raw.index(0) + 1} of this line is a NUL, which no text holds; "
            "the file is damaged or UTF-16: save it as UTF-8"
        )
    return text


@contextmanager
def _lift_csv_field_limit() -> Iterator[None]:
    previous = csv.field_size_limit(_LONGEST_CSV_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(previous)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")

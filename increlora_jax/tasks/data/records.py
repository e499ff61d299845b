"""Records of lines: the fields of a row, or a JSON object, each with its line number."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.lines import Lines

# csv stores its limit in a C long, which has 32 bits on some machines.
_LONGEST_CSV_FIELD = 2**31 - 1
_LONGEST_QUOTE = 60
_MOST_QUOTES = 20


def quote(value: str) -> str:
    """Quote a value from a file for a message: escaped, and cut to a readable length."""
    if len(value) > _LONGEST_QUOTE:
        return f"{value[:_LONGEST_QUOTE]!r}… ({len(value)} characters)"
    return repr(value)


def quote_all(values: Sequence[str]) -> str:
    """Quote several values for a message, cutting a long list too."""
    shown = ", ".join(quote(value) for value in values[:_MOST_QUOTES])
    more = len(values) - _MOST_QUOTES
    return f"{shown} and {more} more" if more > 0 else shown


def read_tsv_records(lines: Lines) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, fields), split only at tabs: GLUE's quotes are text and need not balance.

    A blank line has no fields.
    """
    for line, text in lines:
        row = text.removesuffix("\n").removesuffix("\r")
        yield line, row.split("\t") if row else []


def read_csv_records(lines: Lines, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, fields); a quoted field may hold delimiters, quotes and line breaks.

    A blank line has no fields.
    """
    # Strict: otherwise an open quote would turn the rest of the file into one field.
    texts = (_refuse_lone_return(lines, line, text) for line, text in lines)
    reader = csv.reader(texts, strict=True, delimiter=delimiter)
    line = 1
    with _lift_csv_field_limit():
        try:
            for fields in reader:
                yield line, fields
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(
                f"{lines.path}:{line}: the row that starts here is not valid CSV ({error}); "
                'quote the field and double each " within it, or save the file as .tsv'
            ) from error


def read_json_records(lines: Lines) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield (line, object) of a file with one JSON object a line; None for a blank line."""
    for line, text in lines:
        if not text.strip():
            yield line, None
            continue
        try:
            record = DECODER.decode(text)
        except RepeatedKeyError as error:
            raise InputError(f"{lines.path}:{line}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{lines.path}:{line}: not valid JSON ({error}). Write one JSON object a line, "
                "or end the name of a file that is one array in .json"
            ) from error
        yield line, check_object(f"{lines.path}:{line}", record)


def check_object(where: str, record: object) -> dict[str, Any]:
    """Return a row's JSON value if it is an object.

    Raises:
        InputError: If it is not.
    """
    if not isinstance(record, dict):
        raise InputError(
            f"{where}: a JSON {type(record).__name__} where an object is needed; "
            'write each row as an object, such as {"sentence": "…", "label": "…"}'
        )
    return record


def _refuse_constant(name: str) -> NoReturn:
    """Refuse the constants that Python's json accepts although JSON lacks them."""
    raise ValueError(f"{name} is not JSON")


class RepeatedKeyError(ValueError):
    """Error of a JSON object with a repeated key: readers would silently drop a value."""

    def __init__(self, key: str) -> None:
        super().__init__(f"more than one key is called {quote(key)}. Rename or remove all but one")


def find_repeated(names: Sequence[str]) -> str | None:
    """Return the first name that appears twice; None if there is none."""
    seen = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise RepeatedKeyError(find_repeated([key for key, _ in pairs]) or "")
    return record


# Of equal keys, Python silently keeps the last.
DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_make_object)


def _refuse_lone_return(lines: Lines, line: int, text: str) -> str:
    """Refuse the line breaks of old Macintoshes, which make a whole file one line."""
    place = text.removesuffix("\n").removesuffix("\r").find("\r")
    if place >= 0 and text.count('"', 0, place) % 2 == 0 and line == 1:
        raise InputError(
            f"{lines.path}:1: the lines of this file end in a carriage return alone. "
            "End them in a line feed, for example with tr '\\r' '\\n'"
        )
    return text


@contextmanager
def _lift_csv_field_limit() -> Iterator[None]:
    previous = csv.field_size_limit(_LONGEST_CSV_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(previous)

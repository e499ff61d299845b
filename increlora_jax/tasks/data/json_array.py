"""Records of a .json file: an array of objects, alone or under "data", or one object a line."""

import json
import re
from collections.abc import Iterator
from typing import Any

from increlora_jax.errors import InputError
from increlora_jax.tasks.data.lines import Lines
from increlora_jax.tasks.data.records import (
    DECODER,
    RepeatedKeyError,
    check_object,
    read_json_records,
)

_BLANKS = re.compile(r"[ \t\r\n]*")


def read_json_file(lines: Lines) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield (line, object) for each row, with the line on which the object starts.

    The file holds an array of objects, an object whose "data" is such an array, or one object a
    line.

    Raises:
        InputError: If the file is not valid. The message gives file and line.
    """
    text = "".join(line for _, line in lines)
    start = _skip_blanks(text, 0)
    if start == len(text):
        return iter(())
    if text[start] == "[":
        return _read_array(lines, text, start)
    data = _find_data(lines, text, start)
    if data is not None:
        return _read_array(lines, text, data, is_inner=True)
    return read_json_records(lines)


def _find_data(lines: Lines, text: str, start: int) -> int | None:
    """Return the start of the array under "data" in the object at `start`, if there is one."""
    place, keys = _skip_blanks(text, start + 1), set()
    try:
        while text.startswith('"', place):
            key, place = DECODER.raw_decode(text, place)
            if key in keys:
                raise RepeatedKeyError(key)
            keys.add(key)
            place = _skip_blanks(text, _skip_blanks(text, place) + 1)  # skips the colon
            if key == "data" and text.startswith("[", place):
                return place
            place = _skip_blanks(text, DECODER.raw_decode(text, place)[1])
            place = _skip_blanks(text, place + text.startswith(",", place))
    except RepeatedKeyError as error:
        raise InputError(f"{_locate(lines, text, place)}: {error}") from error
    except (ValueError, RecursionError):  # the reader of lines reports it with its line
        return None
    return None


def _read_array(
    lines: Lines, text: str, start: int, is_inner: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the items of the array at `start`, which may be inside an object."""
    place, line, seen = _skip_blanks(text, start + 1), 1, 0
    while text[place : place + 1] != "]":
        line, seen = line + text.count("\n", seen, place), place
        where = f"{lines.path}:{line}"
        record, place = _decode(where, text, place)
        yield line, check_object(where, record)
        place = _skip_blanks(text, place)
        if text[place : place + 1] == ",":
            place = _skip_blanks(text, place + 1)
            if text[place : place + 1] == "]":
                place = len(text)  # a trailing comma
        elif text[place : place + 1] != "]":
            raise _describe_bad_json(lines, text, place, "a comma or ] is needed here")
    _check_end(lines, text, place + 1, is_inner)


def _check_end(lines: Lines, text: str, place: int, is_inner: bool) -> None:
    """Check that only blanks follow an array, or other keys of the enclosing object."""
    if is_inner:
        where = _locate(lines, text, place)
        tail = text[place:].lstrip(" \t\r\n").removeprefix(",")
        place = len(text)
        others, end = _decode(where, "{" + tail, 0)
        if "data" in others:
            raise InputError(f"{where}: {RepeatedKeyError('data')}")
        place -= len(tail) + 1 - end
    place = _skip_blanks(text, place)
    if place < len(text):
        raise _describe_bad_json(lines, text, place, "nothing may follow the array")


def _decode(where: str, text: str, place: int) -> tuple[Any, int]:
    try:
        return DECODER.raw_decode(text, place)
    except RepeatedKeyError as error:
        raise InputError(f"{where}: {error}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg}). Correct it") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}). Correct it") from error


def _describe_bad_json(lines: Lines, text: str, place: int, problem: str) -> InputError:
    return InputError(f"{_locate(lines, text, place)}: not valid JSON ({problem}). Correct it")


def _locate(lines: Lines, text: str, place: int) -> str:
    return f"{lines.path}:{text.count(chr(10), 0, place) + 1}"


def _skip_blanks(text: str, place: int) -> int:
    match = _BLANKS.match(text, place)
    return match.end() if match else place

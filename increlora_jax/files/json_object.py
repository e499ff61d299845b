"""JSON objects from untrusted files, limited in size and depth."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from increlora_jax.errors import InputError
from increlora_jax.files.bounded import read_bounded

MAX_BYTES = 1 << 24
MAX_DEPTH = 32


def read_json_object(
    path: Path, *, max_bytes: int = MAX_BYTES, allow_nan: bool = False
) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        InputError: If the file holds anything else, repeats a key, or has a number that is not
            finite (unless `allow_nan`). The message gives file and line.
    """
    return parse_json_object(read_bounded(path, max_bytes), path, allow_nan=allow_nan)


def parse_json_object(raw: bytes, where: Path, *, allow_nan: bool = False) -> dict[str, Any]:
    """Parse one JSON object, as `read_json_object` does; error messages name the file `where`."""
    strict: dict[str, Any] = {"parse_constant": _refuse, "parse_float": _parse_finite}
    try:
        text = raw.decode()
        content = json.loads(
            text, object_pairs_hook=_refuse_repeats, **({} if allow_nan else strict)
        )
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{where}:{line}: not UTF-8. Get the file again") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}:{error.lineno}: not valid JSON ({error.msg}). Get the file again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}). Get the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: holds no JSON object; is it the right file?")
    if _is_deeper(content, MAX_DEPTH):
        raise InputError(f"{where}: nested more than {MAX_DEPTH} deep; is it the right file?")
    return content


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} appears twice")
    return content


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _parse_finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _is_deeper(content: Any, depth: int) -> bool:
    level = [content]
    for _ in range(depth):
        level = [inner for one in level for inner in _children(one)]
    return bool(level)


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()

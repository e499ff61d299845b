"""Checks of JSON values against type annotations."""

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from increlora_jax.errors import InputError

_INT = re.compile(r"[0-9]{1,18}")


def is_of_kind(value: object, kind: Any) -> bool:
    """Return whether a JSON value fits an annotation.

    An int is a float too; a bool is neither. JSON keys are strings, so the keys of dict[int, …] are
    strings of digits.

    Args:
        value: A value that `json.loads` returned.
        kind: An annotation made of str, a NewType of str, int, float, bool, None, Literal, list[…],
            dict[str, …], dict[int, …] and unions.
    """
    inner = get_args(kind)
    match get_origin(kind):
        case origin if origin in (Union, UnionType):
            return any(is_of_kind(value, one) for one in inner)
        case origin if origin is Literal:
            return value in inner
        case origin if origin is list:
            return isinstance(value, list) and all(is_of_kind(v, inner[0]) for v in value)
        case origin if origin is dict:
            return isinstance(value, dict) and all(
                (inner[0] is str or _INT.fullmatch(key)) and is_of_kind(v, inner[1])
                for key, v in value.items()
            )
    if hasattr(kind, "__supertype__"):  # `values.Reference`: package.module:name
        return isinstance(value, str) and ":" in value
    return type(value) in ((int, float) if kind is float else (kind,))


def check_keys(
    where: Path | str,
    content: Mapping[str, Any],
    kinds: Mapping[str, Any],
    *,
    may_have_others: bool = False,
) -> None:
    """Check that an object has exactly the given keys, with values of the given kinds.

    Args:
        where: The file, for error messages.
        content: The object.
        kinds: The annotation of each key.
        may_have_others: Whether further keys are ignored instead of refused.

    Raises:
        InputError: If a key is missing, unknown or of another kind. The message names the key.
    """
    for name in (*kinds, *content):
        if name not in content:
            raise InputError(
                f"{where}: {name!r} is missing; the file is damaged or of another kind"
            )
        if name not in kinds:
            if may_have_others:
                continue
            raise InputError(f"{where}: unknown key {name!r}; the keys are {', '.join(kinds)}")
        if not is_of_kind(content[name], kinds[name]):
            raise InputError(
                f"{where}: {name} is {reprlib.repr(content[name])} where {describe(kinds[name])} "
                "is needed"
            )


def describe(kind: Any) -> str:
    """Return an annotation as a user reads it: `list[str] | None`."""
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)

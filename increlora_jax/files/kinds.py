"""Values against type annotations: what a file may hold under a key."""

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from increlora_jax.errors import InputError

_INT = re.compile(r"[0-9]{1,18}")


def is_of_kind(value: object, kind: Any) -> bool:
    """Return whether a JSON value fits an annotation; an int is a float too, a bool is neither.

    `kind` is made of str, NewTypes of it, int, float, bool, None, Literal, list[…], dict[str, …]
    and unions; the keys of dict[int, …] are words that spell a number, since JSON's are words.
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
    """See that an object has the keys of `kinds`, of these kinds, and no others unless they may be.

    Raises:
        InputError: it has not, and which key is wrong.
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
    """An annotation as a user reads it: `list[str] | None`."""
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)

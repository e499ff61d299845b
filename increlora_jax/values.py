"""Values of settings: conversion from text, and checks of bounds."""

import math
import os
import re
from dataclasses import field, fields
from types import NoneType
from typing import Any, Literal, NewType, TypeVar, cast, get_args, get_origin

from increlora_jax.errors import InputError, suggest

Group = TypeVar("Group")

Reference = NewType("Reference", str)
"""A reference to the user's code, as the string `package.module:name`."""

_LONGEST_SHOWN = 40
_MOST_DIGITS = 18
_SWITCH = {
    word: is_on
    for words, is_on in (("true t yes y on 1", True), ("false f no n off 0", False))
    for word in words.split()
}
_WANTED = {
    bool: "true or false",
    int: f"a whole number of at most {_MOST_DIGITS} digits",
    float: "a finite number",
    str: "text",
}


def option(default: Any, help: str) -> Any:
    """Return a field of a configuration with its default and its line of `--help`, in ASCII."""
    return field(default=default, metadata={"help": help})


def list_options(group: type[Group]) -> type[Group]:
    """Add the options of a dataclass to its docstring, as `--help` lists them."""
    options = [f"        {f.name}: {f.metadata['help']}." for f in fields(cast(Any, group))]
    group.__doc__ = "\n".join([f"{group.__doc__}", "    Attributes:", *options])
    return group


def kinds_in(kind: Any) -> tuple[Any, ...]:
    """Return the kinds of a setting's values besides None: those of a union, or the kind itself."""
    is_union = not isinstance(kind, type) and get_origin(kind) not in (list, Literal)
    return tuple(k for k in get_args(kind) if k is not NoneType) if is_union else (kind,)


def convert(text: str, kind: Any) -> Any:
    """Convert text to a bool, int, float, str, Literal, or a member of a union of these.

    Raises:
        ValueError: If the text fits no kind; the message has the text and the allowed values.
    """
    kinds = kinds_in(kind)
    if Reference in kinds:  # text with a colon is a reference, text without is not
        kinds = tuple(k for k in kinds if (k is Reference) == (":" in text))
    for one in kinds:
        try:
            return _convert(text, one)
        except ValueError as error:
            if len(kinds) == 1:
                raise error from None
    raise ValueError(f"{show(text)} must be {' or '.join(map(_describe, kinds))}")


def expand_home(path: str) -> str:
    """Replace a leading `~` or `~user` by that home folder.

    Raises:
        ValueError: If there is no such user, or the home folder is unknown.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(
            f"{path}: the home folder {path.partition('/')[0]} is unknown. Write the path out, "
            f"or give ./{path} for a folder of that name"
        )
    return expanded


def split_names(words: list[str] | None) -> list[str] | None:
    """Split `query,key,value` at its commas; keep a regex with commas whole."""
    if words is None:
        return None
    lists = [re.split(r"\s*,\s*", word.strip()) for word in words]
    are_names = [all(re.fullmatch(r"[\w.]+", name) for name in names) for names in lists]
    pairs = zip(words, lists, are_names, strict=True)
    return [name for word, names, are in pairs for name in (names if are else [word])]


def show(text: str) -> str:
    """Return the text in quotes, shortened if it is long."""
    more = len(text) - _LONGEST_SHOWN
    return repr(text) if more <= 0 else f"{text[:_LONGEST_SHOWN]!r}… and {more} characters more"


def _convert(text: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return _choose(text, get_args(kind))
    if kind is str:
        return _check_text(text)
    if kind is Reference:
        return _check_reference(text)
    value: Any = None
    if kind is bool:
        value = _SWITCH.get(text.lower())
    elif kind is int and re.fullmatch(rf"[-+]?[0-9]{{1,{_MOST_DIGITS}}}", text):
        value = int(text)
    elif kind is float:
        value = _finite(text)
    if value is None:
        raise ValueError(f"{show(text)} must be {_WANTED[kind]}")
    return value


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _choose(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        listed = f"choose from {', '.join(choices)}"
        raise ValueError(f"invalid choice: {show(text)} ({listed}){suggest(text, choices)}")
    return text


def _check_text(text: str) -> str:
    try:
        is_text = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        is_text = False
    if not is_text:
        raise ValueError("holds characters that no text or file name may hold")
    return text


def _check_reference(text: str) -> str:
    if not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", text):
        raise ValueError(f"{show(text)} must be package.module:name")
    return text


def _describe(kind: Any) -> str:
    return ", ".join(get_args(kind)) if get_origin(kind) is Literal else _WANTED[kind]


def flag_of(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def require(is_good: bool, name: str, value: Any, wanted: str) -> None:
    """Raise an InputError that names the flag, unless the value is good.

    Args:
        is_good: Whether the value passes.
        name: The setting.
        value: Its value, for the message.
        wanted: Words for a good value, such as "at least 1".

    Raises:
        InputError: If the value does not pass.
    """
    if not is_good:
        raise InputError(f"{flag_of(name)} {value} must be {wanted}")


def expand_homes(config: Any, *names: str) -> None:
    """Replace `~` by the home folder in these settings of a configuration, in place."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, str) and value.startswith("~"):
            try:
                object.__setattr__(config, name, expand_home(value))
            except ValueError as error:
                raise InputError(f"{flag_of(name)} {error}") from None


def require_each(config: Any, names: str, test: Any, wanted: str) -> None:
    """Check settings that are given as numbers; None and `auto` pass.

    Args:
        config: A configuration.
        names: Its settings to check, separated by blanks.
        test: A function that returns whether a number is good.
        wanted: Words for a good value, such as "at least 1".

    Raises:
        InputError: For the first value that fails.
    """
    for name in names.split():
        value = getattr(config, name)
        if value is not None and value != "auto":
            is_number = isinstance(value, int | float)
            require(is_number and test(value), name, value, wanted)

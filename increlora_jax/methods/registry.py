"""The method that a configuration names: from the table, or a function of the user's own."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_type_hints

from jaxtyping import PyTree

from increlora_jax.config import AdapterConfig, RunConfig
from increlora_jax.errors import InputError, suggest
from increlora_jax.methods.base import Method
from increlora_jax.methods.code import load_code
from increlora_jax.methods.table import METHODS
from increlora_jax.values import convert


def build_method(
    model: PyTree,
    config: RunConfig,
    *,
    steps: int,
    default_targets: str,
    default_modules_to_save: list[str],
    initial_ranks: Mapping[str, int] | None = None,
) -> Method:
    """Build the method that a configuration names; nothing is attached yet.

    A name `package.module:function` is imported, which runs its code.

    Args:
        model: the model, which may be abstract.
        config: the configuration of the run.
        steps: optimizer steps of the run.
        default_targets: a regex for the targets, if the configuration names none.
        default_modules_to_save: modules to train in full, if the configuration names none.
        initial_ranks: ranks of the modules that begin with a trained update; None: none do.

    Raises:
        InputError: targets match nothing, a growth plan cannot finish, or a function is missing or
            returns no `Method`.
    """
    name = config.adapter.method
    given: dict[str, Any] = {
        "steps": steps,
        "adapter": fill_places(config.adapter, default_targets, default_modules_to_save),
        "growth": config.growth,
    }
    if initial_ranks:
        given["initial_ranks"] = initial_ranks
    if ":" in name:
        return _build_from_outside(name, model, config.adapter, given)
    return _build_from_table(name, model, config, given)


def fill_places(
    adapter: AdapterConfig, default_targets: str, default_modules_to_save: list[str]
) -> AdapterConfig:
    """Return the settings with the default places where the user names none.

    Raises:
        InputError: the model has no default places for this method.
    """
    if not (adapter.target_modules or default_targets):
        raise InputError(
            f"--method {adapter.method}: the model does not say which of its layers are followed. "
            "Name them by --target-modules"
        )
    return replace(
        adapter,
        target_modules=adapter.target_modules or [default_targets],
        modules_to_save=adapter.modules_to_save or default_modules_to_save,
    )


def _build_from_table(name: str, model: PyTree, config: RunConfig, given: dict[str, Any]) -> Method:
    if name not in METHODS:
        listed = f"Choose from {', '.join(METHODS)}, or package.module:function"
        raise InputError(f"--method {name}: unknown. {listed}{suggest(name, METHODS)}")
    entry = METHODS[name]
    if entry.own_group:
        given["config"] = getattr(config, entry.own_group)
    method: Method = load_code("--method", entry.build)(model, **given)
    return method


def _build_from_outside(
    name: str, model: PyTree, adapter: AdapterConfig, given: dict[str, Any]
) -> Method:
    build = load_code("--method", name)
    if not callable(build):
        raise InputError(f"--method {name}: the object cannot be called. Name a function")
    own = _own_settings(name, build, adapter.method_options or [])
    try:
        inspect.signature(build).bind(model, **given, **own)
    except TypeError as error:
        taken = ", ".join([*given, *own])
        raise InputError(
            f"--method {name}: the function must take (model, *, {taken}): {error}. Correct its "
            "arguments"
        ) from None
    method = build(model, **given, **own)
    if not isinstance(method, Method):
        raise InputError(
            f"--method {name}: the function returns a {type(method).__name__}. It must return an "
            "il.Method"
        )
    return method._replace(name=name)


def _own_settings(name: str, build: Callable[..., Any], words: list[str]) -> dict[str, Any]:
    """Return the argument `config` of a function that declares one, from `--method-options`."""
    group = get_type_hints(build).get("config") if inspect.isfunction(build) else None
    if not is_dataclass(group):
        if words:
            raise InputError(
                f"--method-options {words[0]}: {name} has no argument `config` whose type is a "
                "dataclass. Leave the flag out"
            )
        return {}
    kinds = {f.name: get_type_hints(group)[f.name] for f in fields(group)}
    values = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in kinds:
            raise InputError(
                f"--method-options {word}: write NAME=VALUE; the names of {name} are "
                f"{', '.join(kinds)}{suggest(key, kinds)}"
            )
        try:
            values[key] = convert(text, kinds[key])
        except ValueError as error:
            raise InputError(f"--method-options {word}: {error}") from None
    make: Any = group
    return {"config": make(**values)}

"""Parameters that a module stores as W and that everybody reads as W + ΔW."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NoReturn

import jax
from flax import nnx

from increlora_jax.errors import InputError


class EffectiveParameter:
    """An attribute that is stored as W and read as W + ΔW, wherever it is read.

    `effective(module, value)` computes W + ΔW of the value W, or returns None if nothing is to be
    added. Flax's own states hold W.
    """

    def __init__(self, name: str, effective: Callable[[Any, Any], Any]):
        self.name = name
        self.effective = effective

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        """Read the effective parameter; the stored one if nothing is to be added."""
        if module is None:
            return self
        if self.name not in vars(module):
            raise AttributeError(self.name)
        variable = vars(module)[self.name]
        if not isinstance(variable, nnx.Variable):
            return variable
        stored = variable.get_value()
        is_abstract = isinstance(stored, jax.ShapeDtypeStruct)
        value = None if is_abstract else self.effective(module, stored)
        return variable if value is None else _read_only(variable, value)

    def __set__(self, module: Any, value: Any) -> None:
        vars(module)[self.name] = value

    def __delete__(self, module: Any) -> None:
        del vars(module)[self.name]


def set_stored(names: Iterable[str], module: Any, key: Any, value: Any) -> bool:
    """Update a variable that is stored under one of `names`; returns whether `key` is of them.

    Flax's own way would update the effective parameter instead.
    """
    if key not in names or not isinstance(value, nnx.Variable):
        return False
    held = vars(module).get(key)
    if not isinstance(held, nnx.Variable):
        return False
    held.update_from_state(value)
    return True


def _read_only(variable: nnx.Variable, value: Any) -> nnx.Variable:
    return _read_only_type(type(variable)).from_metadata(value, variable.get_metadata())


@cache
def _read_only_type(kind: type[nnx.Variable]) -> type[nnx.Variable]:
    """Return the same kind of variable, which refuses to be written."""

    def refuse(self: Any, *args: Any, **options: Any) -> NoReturn:
        raise InputError(
            f"an adapted parameter {list(self.shape)} is read as W + ΔW and cannot be written: the "
            "value would be lost. Write W by nnx.update(model, state), or merge or detach first"
        )

    make: Any = type(kind)
    refusals = {"set_value": refuse, "set_raw_value": refuse, "update_from_state": refuse}
    made: type[nnx.Variable] = make(f"Effective{kind.__name__}", (kind,), refusals)
    return made

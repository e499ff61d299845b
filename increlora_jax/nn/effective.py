"""Surgery on live NNX modules: parameters that are stored as W and read as W + ΔW.

A user's own code must see W + ΔW wherever it reads a parameter of a module that `il.attach` was
given, and `il.detach` must leave the module as it was. Flax has no public function for either. All
uses of its private names are in this file, each with its reason. They were tried with Flax 0.12.5
and 0.12.8.
"""

from collections.abc import Callable, Mapping
from functools import cache
from inspect import getattr_static
from types import new_class
from typing import Any, NoReturn, TypeVar

import jax
from flax import nnx
from jaxtyping import Array

from increlora_jax.errors import InputError
from increlora_jax.quantization import Kernel

M = TypeVar("M", bound=nnx.Module)
T = TypeVar("T")

Effective = Callable[[Any, Kernel], Array | None]
"""(module, W) → W + ΔW, or None if there is no update to add; any module with the parameter."""

_RECORD = "_pytree__"
"""Private: the prefix of the attributes in which Flax records the others of a module."""

_READING = "is_reading"


class EffectiveParameter:
    """Attribute that is stored as W and read as W + ΔW. States of Flax hold W."""

    def __init__(self, name: str, effective: Effective):
        self.name = name
        self.effective = effective

    def __get__(self, module: nnx.Module | None, owner: type) -> Any:  # as the plain attribute
        """Return the effective parameter, or the stored one if there is no update to add."""
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

    def __set__(self, module: nnx.Module, value: object) -> None:
        vars(module)[self.name] = value

    def __delete__(self, module: nnx.Module) -> None:
        del vars(module)[self.name]


class EffectiveModule(nnx.Module):
    """Module with effective parameters."""

    def _graph_node_set_key(self, key: str, value: object) -> None:
        # Private: `nnx.update` and `nnx.merge` write a state into a module by this method. Flax's
        # own would write into the read-only W + ΔW in place of the stored W.
        held = vars(self).get(key)
        is_effective = isinstance(getattr_static(type(self), key, None), EffectiveParameter)
        if is_effective and isinstance(held, nnx.Variable) and isinstance(value, nnx.Variable):
            held.update_from_state(value)
        else:
            super()._graph_node_set_key(key, value)


def derive(
    kind: type[T], prefix: str, bases: tuple[type, ...], attributes: Mapping[str, object]
) -> type[T]:
    """Make a class of some bases that is described like another class.

    Args:
        kind: the class to be like; one of the bases.
        prefix: put before its name.
        bases: the bases of the new class.
        attributes: the attributes of the new class by name.
    """
    space = {"__module__": kind.__module__, "__doc__": kind.__doc__, **attributes}
    return new_class(prefix + kind.__name__, bases, exec_body=lambda own: own.update(space))


def effective_names(kind: type) -> list[str]:
    """Return the names of the effective parameters that a class itself defines."""
    return [name for name, value in vars(kind).items() if isinstance(value, EffectiveParameter)]


def copy_as(kind: type[M], module: nnx.Module) -> M:
    """Return a module of another class with the same attributes, without a call of `__init__`."""
    # The attributes include Flax's record of them, so that Flax sees the same nodes.
    copied: M = object.__new__(kind)
    vars(copied).update(vars(module))
    return copied


def set_kind(module: nnx.Module, kind: type[nnx.Module]) -> None:
    """Make a module an instance of another class, in place."""
    # Not by `module.__class__ = kind`, which Flax would record as an attribute.
    object.__setattr__(module, "__class__", kind)


def attributes_of(node: nnx.Pytree) -> dict[str, object]:
    """Return the attributes of a node of Flax as they are stored, without Flax's record of them."""
    return {name: held for name, held in vars(node).items() if not name.startswith(_RECORD)}


def is_reading(held: object) -> bool:
    """Return whether something held is W + ΔW as it was read from an adapted module."""
    return hasattr(type(held), _READING)


def _read_only(variable: nnx.Variable[Array], value: Array) -> nnx.Variable[Array]:
    return _read_only_type(type(variable)).from_metadata(value, variable.get_metadata())


@cache
def _read_only_type(kind: type[nnx.Variable[Array]]) -> type[nnx.Variable[Array]]:
    """Return a subclass of a variable's class that refuses to be written."""

    def refuse(self: nnx.Variable[Array], *args: object, **options: object) -> NoReturn:
        raise InputError(
            f"an adapted parameter {list(self.shape)} is read as W + ΔW and cannot be written: the "
            "value would be lost. Write W by nnx.update(model, state), or merge or detach first"
        )

    refusals = {"set_value": refuse, "set_raw_value": refuse, "update_from_state": refuse}
    return derive(kind, "Effective", (kind,), {**refusals, _READING: True})

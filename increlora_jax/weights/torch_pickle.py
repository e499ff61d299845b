"""Pickles in PyTorch's weight files, interpreted without importing or calling anything.

The standard unpickler is not used, even with restricted imports. A few bytes can make it allocate
gigabytes for its memo, or overflow the C stack by hashing nested tuples. Here only the opcodes that
tensors need are interpreted; all others are refused. `pickletools` splits the opcodes and checks
their arguments.
"""

import pickletools
from collections.abc import Callable
from math import prod
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from increlora_jax.weights.stored_tensor import FLOAT_DTYPES

STORAGES = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
}
"""Dtypes of storages by their class, with the safetensors format's names."""

ITEM_BYTES = {name: dtype.itemsize for name, dtype in FLOAT_DTYPES.items()} | {
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip

_MOST_AXES = 32


class ForbiddenImportError(Exception):
    """Error of a pickle that asks for an import weights do not need; the message is its name."""


class Storage(NamedTuple):
    """A run of numbers, stored elsewhere in the file under `key`."""

    key: str
    dtype: str
    length: int

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return self.length * ITEM_BYTES[self.dtype]


class View(NamedTuple):
    """A tensor as a part of a storage, counted in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Number of elements of the storage from the tensor's first to its last, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))

    def take(self, rows: slice) -> "View":
        """Return a range of its rows; both ends must be given."""
        offset = self.offset + rows.start * self.strides[0]
        return self._replace(offset=offset, shape=(rows.stop - rows.start, *self.shape[1:]))


class Pickled(NamedTuple):
    """Content of a pickle, and all storages that it names, by key."""

    value: Any
    storages: dict[str, Storage]


def interpret(source: BinaryIO) -> Pickled:
    """Interpret one pickle and advance `source` past it.

    Raises:
        ForbiddenImportError: If the pickle needs more than tensors and dictionaries.
        ValueError, IndexError, KeyError, TypeError: If it is damaged, or no pickle of tensors.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(source):
        machine.step(opcode.name, argument)
    [value] = machine.stack
    return Pickled(value, machine.storages)


class _Import(NamedTuple):
    """A placeholder for an import of the pickle."""

    name: str


_MARK = object()
_IGNORED = ("PROTO", "FRAME", "STOP")
_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "STRING"),
)
_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}


class _Machine:
    """Stack and memo of the pickle language."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Run one opcode."""
        if opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _FRESH:
            self.stack.append(_FRESH[opcode]())
        elif opcode in _MAKERS:
            self.stack.append(_MAKERS[opcode](self, argument))
        elif opcode in _CHANGES:
            _CHANGES[opcode](self, argument)
        elif opcode not in _IGNORED:
            raise ValueError(f"no file of tensors has the opcode {opcode}")

    def pop(self, count: int) -> list[Any]:
        """Take the given number of items off the stack."""
        _require(len(self.stack) >= count, "more is taken from the stack than is there")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def pop_to_mark(self) -> list[Any]:
        """Take the items above the last mark, and the mark, off the stack."""
        taken = []
        while (item := self.stack.pop()) is not _MARK:
            taken.append(item)
        return taken[::-1]

    def put(self, index: int) -> None:
        """Store the top of the stack in the memo."""
        self.memo[index] = self.stack[-1]

    def append(self, items: list[Any]) -> None:
        """Append to the list on top of the stack."""
        _require(type(self.stack[-1]) is list, "something is appended to a thing that is no list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values in turn to the dictionary on top of the stack."""
        _require(type(self.stack[-1]) is dict, "an entry is set in a thing that is no dictionary")
        keys, values = items[::2], items[1::2]
        # Other keys are refused before hashing: the hash of nested tuples can overflow the C stack.
        _require(all(type(key) is str for key in keys), "the key of a dictionary is no string")
        self.stack[-1].update(zip(keys, values, strict=True))

    def find_storage(
        self, tag: str, kind: _Import, key: str, _place: str, length: int, view: None = None
    ) -> Storage:
        """Return the storage that a persistent id refers to."""
        _require(tag == "storage" and type(kind) is _Import, "not the reference of a storage")
        _require(kind.name in STORAGES, f"{kind.name} is no kind of storage")
        _require(type(key) is str and _is_count(length), "a storage without key or length")
        _require(view is None, "a storage that is part of another")
        storage = Storage(key, STORAGES[kind.name], length)
        known = self.storages.setdefault(key, storage)
        _require(known == storage, f"the storage {key} is described in two ways")
        return storage


# Each opcode's effect, from the items that it pops and its argument.
_MAKERS: dict[str, Callable[[_Machine, Any], Any]] = {
    "TUPLE": lambda machine, _: tuple(machine.pop_to_mark()),
    "TUPLE1": lambda machine, _: tuple(machine.pop(1)),
    "TUPLE2": lambda machine, _: tuple(machine.pop(2)),
    "TUPLE3": lambda machine, _: tuple(machine.pop(3)),
    "BINGET": lambda machine, index: machine.memo[index],
    "LONG_BINGET": lambda machine, index: machine.memo[index],
    "GLOBAL": lambda machine, name: _import(*name.split(" ", 1)),
    "INST": lambda machine, name: _import(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: _import(*machine.pop(2)),
    "REDUCE": lambda machine, _: _reduce(*machine.pop(2)),
    "BINPERSID": lambda machine, _: machine.find_storage(*machine.stack.pop()),
}
_CHANGES: dict[str, Callable[[_Machine, Any], Any]] = {
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "APPEND": lambda machine, _: machine.append(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    # BUILD sets attributes; a dictionary of weights has one, `_metadata`.
    "BUILD": lambda machine, _: machine.pop(1),
}


def _require(is_good: bool, complaint: str) -> None:
    if not is_good:
        raise ValueError(complaint)


def _is_count(number: Any) -> bool:
    return type(number) is int and number >= 0


def _import(module: Any, name: Any) -> _Import:
    full_name = f"{module}.{name}" if type(module) is type(name) is str else "a thing without name"
    if full_name not in STORAGES and full_name not in _FUNCTIONS:
        raise ForbiddenImportError(full_name)
    return _Import(full_name)


def _reduce(function: Any, arguments: Any) -> Any:
    is_call = type(function) is _Import and type(arguments) is tuple
    _require(is_call and function.name in _FUNCTIONS, "a call of a thing that is no function")
    return _FUNCTIONS[function.name](*arguments)


def _view_storage(
    storage: Any, offset: Any, shape: Any, strides: Any, _requires_grad: Any = None, *_hooks: Any
) -> View:
    is_tensor = type(storage) is Storage and type(shape) is type(strides) is tuple
    _require(is_tensor and len(shape) == len(strides) <= _MOST_AXES, "not a tensor")
    _require(all(map(_is_count, (offset, *shape, *strides))), "a tensor of odd shape or strides")
    view = View(storage, offset, shape, strides)
    is_inside = offset + view.span <= storage.length
    # With strides of 0, a few bytes could claim gigabytes.
    _require(is_inside and prod(shape) <= storage.length, "a tensor larger than its storage")
    return view


def _take_parameter(data: Any, _requires_grad: Any = None, *_hooks: Any) -> Any:
    return data


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: {},
    "torch._utils._rebuild_tensor_v2": _view_storage,
    "torch._utils._rebuild_parameter": _take_parameter,
}


def read_strided(view: View, numbers: np.ndarray) -> np.ndarray:
    """Arrange the elements of a view's span into its tensor."""
    strides = [step * numbers.itemsize for step in view.strides]
    return np.lib.stride_tricks.as_strided(numbers, view.shape, strides, writeable=False)

"""Counts from a scheduled program's text: traffic to memory, collectives, gathers, copies."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import isqrt, prod

BITS = {"pred": 8, "token": 0, "opaque": 0}
"""Bits of element types whose names hold no number."""

FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "add-dependency", "opt-barrier", "domain", "while", "conditional", "call",
    "async-start", "async-update",
)  # fmt: skip
"""Opcodes that move nothing by themselves."""

FREE_CALLS = ("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound")
"""Custom calls that only name memory."""

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
COPIES = ("copy", "transpose", "reshape")
SLICES = ("dynamic-slice", "slice", "gather", "slice-start", "dynamic-slice-start")
PRODUCTS = ("convolution", "dot")

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
    r"|\b(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
_CHAIN = re.compile(r'channel_id=(\d+).*chain_id="(\d+)"')
_BATCH = re.compile(r"lhs_batch_dims=\{([\d,]+)\}")
_DILATED = re.compile(r"\blhs_dilate=([\dx]+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclass(frozen=True)
class Array:
    """An array of a program, with the place that its layout names.

    Attributes:
        dtype: Element type.
        shape: Sizes of its axes.
        layout: Text of its layout, empty if there is none.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def is_in_memory(self) -> bool:
        """True of arrays in the chip's own memory (HBM), whose layouts name no other place."""
        return bool(self.shape) and "S(" not in self.layout

    @property
    def bytes(self) -> int:
        """Bytes with the padding of its tiles."""
        if self.dtype in BITS:
            bits = BITS[self.dtype]
        else:
            number = re.search(r"\d+", self.dtype)
            bits = int(number[0]) if number else 8
        return prod(self._padded) * bits // 8

    @property
    def _padded(self) -> list[int]:
        order, _, rest = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", rest)
        if not order or tile is None:
            return list(self.shape)
        sizes = [self.shape[int(axis)] for axis in reversed(order.split(","))]
        units = [int(size) for size in tile[1].split(",")]
        for place, unit in zip(range(1, len(sizes) + 1), reversed(units), strict=False):
            sizes[-place] += -sizes[-place] % unit
        return sizes


@dataclass(frozen=True)
class Instruction:
    """An instruction of a program.

    Attributes:
        name: Its name.
        opcode: Its operation.
        type: Text of its result's type.
        operands: Names of its operands.
        rest: Text of its attributes.
    """

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    rest: str

    @cached_property
    def arrays(self) -> list[Array]:
        """Arrays of its result."""
        return list(_arrays(self.type))

    @cached_property
    def called(self) -> list[str]:
        """Computations that it calls."""
        found = [one or several for one, several in _CALLED.findall(self.rest)]
        return [name.strip(" %") for names in found for name in names.split(",")]


Computation = dict[str, Instruction]


@dataclass
class Counts:
    """Counts of one execution of a program on one chip; bytes include the padding of tiles."""

    read: int = 0
    written: int = 0
    copied: int = 0
    products: int = 0
    flops: int = 0
    gathers: int = 0
    scatters: int = 0
    collectives: Counter[str] = field(default_factory=Counter)
    collective_bytes: Counter[str] = field(default_factory=Counter)

    @property
    def traffic(self) -> int:
        """Bytes that instructions read and write outside VMEM."""
        return self.read + self.written

    def add(self, other: "Counts", times: int = 1) -> None:
        """Add the counts of a part that runs several times."""
        for name in ("read", "written", "copied", "products", "flops", "gathers", "scatters"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for name in ("collectives", "collective_bytes"):
            for kind, count in getattr(other, name).items():
                getattr(self, name)[kind] += times * count


class Module:
    """A program's text, read into computations.

    Args:
        text: The scheduled program.
        least: Elements from which on the result of a gather or scatter counts as activations.
    """

    def __init__(self, text: str, least: int = 1):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        self.roots: dict[str, str] = {}
        self._least = least
        self._done: dict[str, Counts] = {}
        self._read(text)
        self._again = self._find_repeated()

    def count(self) -> Counts:
        """Count one execution, with loops as often as they run."""
        return self._count(self.entry)

    def _read(self, text: str) -> None:
        own: Computation = {}
        name = ""
        for line in text.splitlines():
            if header := _HEADER.match(line):
                name, own = header[1], {}
                self.computations[name] = own
                if line.startswith("ENTRY"):
                    self.entry = name
            elif match := _INSTRUCTION.match(line):
                own[match[1]] = _parse(match[1], match[2])
                if line.lstrip().startswith("ROOT "):
                    self.roots[name] = match[1]

    def _find_repeated(self) -> set[str]:
        """Return the names of collectives that only continue another one.

        A chain of fusions computes meanwhile, and each of them names the collective.
        """
        seen: set[tuple[str, ...]] = set()
        again = set()
        for computation in self.computations.values():
            for one in computation.values():
                chain = _CHAIN.search(one.rest) if one.opcode in COLLECTIVES else None
                if chain and chain.groups() in seen:
                    again.add(one.name)
                elif chain:
                    seen.add(chain.groups())
        return again

    def _count(self, name: str) -> Counts:
        if name not in self._done:
            total = Counts()
            for instruction in self.computations[name].values():
                self._add(total, instruction, self.computations[name])
            self._done[name] = total
        return self._done[name]

    def _add(self, total: Counts, instruction: Instruction, own: Computation) -> None:
        """Add an instruction that is scheduled by itself, with the parts that it runs."""
        match instruction.opcode:
            case "while":
                for name in instruction.called:
                    total.add(self._count(name), self._trips(instruction))
            case "conditional":
                branches = [self._count(name) for name in instruction.called]
                total.add(max(branches, key=lambda counts: counts.traffic))
            case "call" | "async-start":
                for name in instruction.called:
                    total.add(self._count(name))
        for inside, around in self._inside(instruction, own):
            self._note(total, inside, around)
        if self._is_free(instruction):
            return
        read = sum(self._bytes_read(instruction, place, own) for place in _places(instruction))
        written = self._bytes_written(instruction, own)
        total.read += read
        total.written += written
        if instruction.opcode in COPIES:
            total.copied += read + written

    def _trips(self, loop: Instruction) -> int:
        """Return how often a loop runs: as the text says, or as far as it counts from 0."""
        if known := _TRIPS.search(loop.rest):
            return int(known[1])
        condition = self.computations[_CONDITION.findall(loop.rest)[0]]
        bounds = [
            int(found[0])
            for one in condition.values()
            if one.opcode == "constant" and (found := re.match(r"\d+", one.rest))
        ]
        return bounds[0] if len(bounds) == 1 else 1

    def _inside(
        self, instruction: Instruction, own: Computation
    ) -> Iterator[tuple[Instruction, Computation]]:
        """Yield an instruction, and those that are fused into it, each with its computation."""
        yield instruction, own
        if instruction.opcode == "fusion":
            for name in instruction.called:
                inner = self.computations[name]
                for one in inner.values():
                    yield from self._inside(one, inner)

    def _note(self, total: Counts, instruction: Instruction, own: Computation) -> None:
        """Add the operation to the counts by kind."""
        if instruction.opcode in PRODUCTS:
            total.products += 1
            total.flops += _flops(instruction, own)
        size = max((prod(array.shape) for array in instruction.arrays), default=0)
        if size >= self._least:
            total.gathers += instruction.opcode == "gather"
            total.scatters += instruction.opcode == "scatter"
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES and instruction.name not in self._again:
            total.collectives[kind] += 1
            total.collective_bytes[kind] += sum(a.bytes for a in _moved(instruction))

    @staticmethod
    def _is_free(instruction: Instruction) -> bool:
        if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
            return True
        target = _TARGET.search(instruction.rest)
        return bool(target) and target[1] in FREE_CALLS

    def _bytes_read(self, instruction: Instruction, place: int, own: Computation) -> int:
        """Return the bytes that an instruction reads of one operand outside VMEM."""
        source = own.get(instruction.operands[place])
        if source is None or not any(array.is_in_memory for array in source.arrays):
            return 0
        part = self._part_read(instruction, place)
        whole = sum(array.bytes for array in source.arrays if array.is_in_memory)
        return whole if part is None else min(part, whole)

    def _part_read(self, instruction: Instruction, place: int) -> int | None:
        """Return the bytes of an operand's part that is read; None of the whole."""
        opcode = instruction.opcode
        if opcode == "fusion":
            inner = self.computations[instruction.called[0]]
            name = _parameter(inner, place)
            return self._part_used(inner, name) if name else None
        is_handed_on = opcode == "tuple" or instruction.name in self._again
        if is_handed_on or (place == 0 and opcode in ("dynamic-update-slice", "scatter")):
            return 0
        if place == 0 and opcode in SLICES:
            return sum(array.bytes for array in _moved(instruction))
        return None

    def _part_used(self, inner: Computation, name: str) -> int | None:
        """Return the bytes that a fused computation reads of a parameter; None of the whole."""
        total = 0
        for user in inner.values():
            for place in _places(user):
                if user.operands[place] != name:
                    continue
                is_view = user.opcode in ("bitcast", "get-tuple-element")
                part = (
                    self._part_used(inner, user.name) if is_view else self._part_read(user, place)
                )
                if part is None:
                    return None
                total += part
        return total

    def _bytes_written(self, instruction: Instruction, own: Computation) -> int:
        """Return the bytes that an instruction writes outside VMEM."""
        made = _moved(instruction)
        root = self._root(instruction)
        if root is not None and root.opcode == "tuple" and len(made) == len(root.operands):
            inner = self.computations[instruction.called[0]]
            parts = [inner[name] for name in root.operands]
        else:
            inner, parts = own, [instruction] * len(made)
        return sum(
            self._bytes_made(array, part, inner)
            for array, part in zip(made, parts, strict=True)
            if array.is_in_memory
        )

    def _bytes_made(self, array: Array, source: Instruction, own: Computation) -> int:
        if source.opcode == "parameter":  # handed on
            return 0
        part = self._part_written(source, own)
        return array.bytes if part is None else min(part, array.bytes)

    def _part_written(self, instruction: Instruction, own: Computation) -> int | None:
        """Return the bytes of the part of a result that is written; None of the whole."""
        match instruction.opcode:
            case "dynamic-update-slice":
                return sum(array.bytes for array in own[instruction.operands[1]].arrays)
            case "bitcast" if instruction.operands[0] in own:
                return self._part_written(own[instruction.operands[0]], own)
            case _ if instruction.name in self._again:
                return 0
        root = self._root(instruction)
        if root is None or root.opcode in ("tuple", "parameter"):
            return None
        return self._part_written(root, self.computations[instruction.called[0]])

    def _root(self, instruction: Instruction) -> Instruction | None:
        """Return the result of a fused computation; None of an instruction that is no fusion."""
        if instruction.opcode != "fusion":
            return None
        name = instruction.called[0]
        return self.computations[name][self.roots[name]]


def _flops(product: Instruction, own: Computation) -> int:
    """Return two for each multiplication of a product of [B, M, K] and [B, K, N].

    The sizes of operands and result give it: √(BMK · BKN · BMN / B) = B·M·N·K. A TPU's products are
    convolutions, and axes of a batch are windows with a dilated operand.
    """
    shapes = [own[name].arrays[0].shape for name in product.operands[:2]]
    sizes = prod(map(prod, [*shapes, product.arrays[0].shape]))
    if found := _BATCH.search(product.rest):
        batch = prod(shapes[0][int(axis)] for axis in found[1].split(","))
    else:
        dilated = _DILATED.search(product.rest)
        batch = prod(map(int, dilated[1].split("x"))) if dilated else 1
    return 2 * isqrt(sizes // batch)


def _places(instruction: Instruction) -> range:
    return range(len(instruction.operands))


def _parameter(inner: Computation, place: int) -> str | None:
    """Return the name of a fused computation's parameter by its number."""
    found = (
        one.name
        for one in inner.values()
        if one.opcode == "parameter" and one.rest.startswith(f"{place})")
    )
    return next(found, None)


def _moved(instruction: Instruction) -> list[Array]:
    """Return the arrays that an instruction makes, without the inputs that a start repeats."""
    arrays, opcode = instruction.arrays, instruction.opcode
    if opcode in ("reduce-scatter-start", "all-gather-start"):
        return arrays[len(arrays) // 2 :]
    if opcode == "copy-start":
        return arrays[:1]
    if opcode in ("slice-start", "dynamic-slice-start", "collective-permute-start"):
        return arrays[1:2]
    return arrays


def _arrays(text: str) -> Iterator[Array]:
    for dtype, shape, layout in _ARRAY.findall(text):
        yield Array(dtype, tuple(int(size) for size in shape.split(",") if size), layout)


def _parse(name: str, text: str) -> Instruction:
    """Read `TYPE opcode(operands), attributes`."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].strip()
    opcode, _, rest = rest.partition("(")
    close = _closing("(" + rest, 0) - 1
    inside = rest[:close]
    operands = tuple(re.findall(r"%([\w.-]+)", inside))
    return Instruction(name, opcode, kind, operands, rest)


def _closing(text: str, start: int) -> int:
    """Return the place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    return len(text)

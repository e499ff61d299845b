"""Times of a training step's operations by JAX's profiler, grouped by their source."""

import argparse
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jax
import ours
from bench import README, add_work_flags, work_of
from tables import markdown, number, write_into
from work import Work

BASE, ADAPTER, SCORE = "base products", "adapter products", "dense gradient, score"
KINDS = (
    (r"increlora_jax/dropout\.py:|rnglib\.py:", "dropout"),
    (r"core/regularizer\.py:", "orthogonality"),
    (r"core/optimizer\.py:|/optax/(?!losses)", "optimizer, clip"),
    (r"core/importance\.py:|adapter\.py:.*(spread|score)", SCORE),
    # x · (W + ΔW); a custom backward pass has the source of the call.
    (r"core/product\.py:(_sum_|apply_sum)", BASE),
    (r"core/product\.py:(?!_outer|_matmul)|core/adapter\.py:", ADAPTER),
    (r"core/allocator\.py:|methods/increlora\.py:", "growth"),
    (r"models/attention\.py:|relative_positions\.py:", "attention"),
    (r"normalization\.py:", "layer norm"),
    (r"nn/linear\.py:.*Embed", "embeddings"),
    (r"nn/linear\.py:", BASE),
    (r"models/layers\.py:\w*gelu|models/.*(Intermediate|MLP|Mlp)", "activation function"),
    (r"models/.*Embeddings", "embeddings"),
    (r"increlora_jax/models/", "rest of the model"),
    (r"training/", "rest of the step"),
)
"""`path:function` of a frame → kind; the innermost matching frame of an operation counts."""

CONTROL = ("while", "call", "conditional")
"""Operations that last as long as their contents, which are counted by themselves."""


class Operation(NamedTuple):
    """An instruction of the compiled program."""

    opcode: str
    shape: tuple[int, ...]
    name: str  # the path of JAX's transformations
    frames: list[str]  # path:function, the innermost first


def parse_program(text: str) -> dict[str, Operation]:
    """Return the operations of a program's text by name, with their source."""
    tables = {name: _parse_table(text, name) for name in ("FileNames", "FunctionNames")}
    places = _parse_fields(text, "FileLocations", ("file_name_id", "function_name_id"))
    stack = _parse_fields(text, "StackFrames", ("file_location_id", "parent_frame_id"))

    def frames(frame: int) -> list[str]:
        found = []
        while frame:
            place, parent = stack[frame]
            file, function = places[place]
            found.append(f"{tables['FileNames'][file]}:{tables['FunctionNames'][function]}")
            frame = parent - 1
        return found

    pattern = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = \w+\[([\d,]*)\]\S* ([\w-]+)\((.*)$", re.M)
    operations = {}
    for name, shape, opcode, rest in pattern.findall(text):
        noted = re.search(r'op_name="([^"]*)"', rest)
        frame = re.search(r"stack_frame_id=(\d+)", rest)
        sizes = tuple(int(size) for size in shape.split(",") if size)
        found = (
            frames(int(frame[1]))
            if frame
            else [f"{path}:" for path in re.findall(r'source_file="([^"]*)"', rest)]
        )
        operations[name] = Operation(opcode, sizes, noted[1] if noted else "", found)
    return operations


def _parse_table(text: str, name: str) -> dict[int, str]:
    section = re.search(rf"^{name}\n(.*?)\n\n", text, re.M | re.S)
    lines = section[1].splitlines() if section else []
    return {int(index): value.strip('"') for index, value in (line.split(" ", 1) for line in lines)}


def _parse_fields(text: str, name: str, fields: tuple[str, str]) -> dict[int, tuple[int, int]]:
    def field(value: str, wanted: str) -> int:
        found = re.search(rf"{wanted}=(\d+)", value)
        return int(found[1]) if found else 0

    table = _parse_table(text, name)
    return {i: (field(value, fields[0]), field(value, fields[1])) for i, value in table.items()}


def kind_of(operation: Operation, dense: set[tuple[int, ...]]) -> str:
    """Return the kind of an operation; `dense` are the shapes of the adapted kernels."""
    fitting = (k for frame in operation.frames for pattern, k in KINDS if re.search(pattern, frame))
    kind = next(fitting, "other")
    is_backward = "transpose(" in operation.name
    if any("core/product.py:" in frame for frame in operation.frames):
        if operation.shape in dense:
            kind = SCORE if is_backward else ADAPTER  # ∂L/∂ΔW; W + ΔW
        elif len(operation.shape) == 2 and min(operation.shape) < min(map(min, dense)):
            kind = ADAPTER  # an axis of slots
    if kind == "attention":
        return "attention products" if "dot_general" in operation.name else "attention, the rest"
    if kind in (BASE, ADAPTER):
        return f"{kind}, {'backward' if is_backward else 'forward'}"
    if kind == "other" and operation.opcode in ("copy", "transpose"):
        return "copies"
    return kind


def milliseconds_by_operation(directory: Path, steps: int) -> dict[str, float]:
    """Return each operation's milliseconds in a traced step, on all threads together.

    These are medians over the steps: an interrupted operation can take a thousand times as long.
    """
    seen: dict[str, list[float]] = defaultdict(list)
    for path in directory.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for event in (event for line in plane.lines for event in line.events):
                if operation := dict(event.stats).get("hlo_op"):
                    seen[str(operation)].append(event.duration_ns / 1e6)
    return {name: median(times) * len(times) / steps for name, times in seen.items()}


def measure(
    work: Work, training: ours.Training, steps: int, *, is_scored: bool
) -> dict[str, float]:
    """Return the milliseconds of a step by kind.

    Args:
        work: The work.
        training: The model under training.
        steps: Number of steps to trace.
        is_scored: Whether the steps are scored.
    """
    training.step(2, is_scored=is_scored)
    with tempfile.TemporaryDirectory() as scratch:
        with jax.profiler.trace(scratch):
            training.step(steps, is_scored=is_scored)
        taken = milliseconds_by_operation(Path(scratch), steps)
    operations = parse_program(training.program(is_scored=is_scored))
    dense = {shape for pair in work.sizes.values() for shape in (pair, pair[::-1])}
    kinds: dict[str, float] = defaultdict(float)
    for name in (
        taken.keys() & operations.keys()
    ):  # operations of several results only contain others
        if operations[name].opcode not in CONTROL:
            kinds[kind_of(operations[name], dense)] += taken[name]
    return kinds


def table(columns: dict[str, dict[str, float]]) -> str:
    """Return a table with a row for each kind, the most expensive first, and the sums."""
    kinds = {kind for column in columns.values() for kind in column}
    dearest = sorted(kinds, key=lambda kind: -sum(c.get(kind, 0.0) for c in columns.values()))
    rows = [[kind, *(_cell(column, kind) for column in columns.values())] for kind in dearest]
    sums = ["all", *(number(sum(column.values())) for column in columns.values())]
    return markdown(["ms a step", *columns], [*rows, sums]) + "\n"


def _cell(column: dict[str, float], kind: str) -> str:
    taken = column.get(kind, 0.0)
    return f"{number(taken)} ({100 * taken / sum(column.values()):.0f} %)"


def main() -> None:
    """Print the table; with --write also put it into the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_work_flags(parser)
    parser.add_argument("--traced", type=int, default=5, help="steps that are traced")
    parser.add_argument("--write", action="store_true", help="put the table into the README")
    options = parser.parse_args()
    work = work_of(options)
    lora, increlora = ours.lora(work), ours.increlora(work)
    columns = {
        "lora": measure(work, lora, options.traced, is_scored=False),
        "increlora, unscored": measure(work, increlora, options.traced, is_scored=False),
        "increlora, scored": measure(work, increlora, options.traced, is_scored=True),
    }
    text = table(columns)
    sys.stdout.write(text)
    if options.write:
        written = write_into(README.read_text(encoding="utf-8"), "costs", text)
        README.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()

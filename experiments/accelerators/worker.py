"""Compile one program in a process of its own: `python worker.py JSON` prints a line of results."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
from chips import find_chip
from hlo import Counts, Module
from kernels import describe_kernels, listened
from programs import Program, as_if_on, trace

SIZES = {
    "arguments": "argument_size_in_bytes",
    "temporaries": "temp_size_in_bytes",
    "outputs": "output_size_in_bytes",
    "donated": "alias_size_in_bytes",
    "code": "generated_code_size_in_bytes",
}


def measure(program: Program, topology: str, text: Path | None = None) -> dict[str, Any]:
    """Compile a program and return its counts, or the error with which it does not compile.

    Args:
        program: The program.
        topology: The chips.
        text: The file that the scheduled program is written to; default: none.
    """
    chip = find_chip(topology)
    start = time.perf_counter()
    traced = trace(program, topology)
    line: dict[str, Any] = {"trace seconds": _since(start)}
    start, processor = time.perf_counter(), time.process_time()
    try:
        with as_if_on(chip.platform), listened() as heard:
            compiled = traced.lower().compile()
            remarks = heard.read_text(encoding="utf-8")
    except jax.errors.JaxRuntimeError as error:
        return line | {"error": str(error).strip().splitlines()[0]}
    line["compile seconds"] = _since(start)
    line["compile processor seconds"] = round(time.process_time() - processor, 1)
    written = compiled.as_text() or ""
    if text is not None:
        text.write_text(written, encoding="utf-8")
    counts = Module(written, program.batch * program.length // program.chips).count()
    sizes = compiled.memory_analysis()
    memory = {name: getattr(sizes, field) for name, field in SIZES.items()}
    kernels = {"kernels": describe_kernels(remarks)} if remarks else {}
    return line | {"memory": memory, **describe(counts), **kernels}


def describe(counts: Counts) -> dict[str, Any]:
    """Return the counts of a program's text under the names of a line of results."""
    kinds = {
        kind: {"count": count, "bytes": counts.collective_bytes[kind]}
        for kind, count in sorted(counts.collectives.items())
    }
    return {
        "flops": counts.flops,
        "traffic": {"read": counts.read, "written": counts.written, "copied": counts.copied},
        "collectives": kinds,
        "products": counts.products,
        "gathers": counts.gathers,
        "scatters": counts.scatters,
    }


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 1)


def main() -> None:
    """Read the program as JSON from the command line; print its line."""
    told = json.loads(sys.argv[1])
    text = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    topology = told.pop("topology")
    line = measure(Program(**told), topology, text)
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()

"""Compare two files of results: `python compare.py OLD.jsonl NEW.jsonl` prints new / old."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compile import read_lines

Line = Mapping[str, Any]


def ratios(old: list[Line], new: list[Line]) -> Iterator[tuple[str, ...]]:
    """Yield the ratios of every program that both files have."""
    before = {(line["name"], line["topology"], line["mesh"]): line for line in old}
    for line in new:
        held = before.get((line["name"], line["topology"], line["mesh"]))
        if held is None:
            continue
        one, two = _numbers(held), _numbers(line)
        told = (f"{two[name] / one[name]:.2f}" if one.get(name) and name in two else "–"
                for name in NAMES)  # fmt: skip
        yield line["name"], line["topology"], *told


NAMES = ("memory", "traffic", "FLOPs", "collectives", "code", "compile seconds")


def _numbers(line: Line) -> dict[str, float]:
    """Return the numbers of a line that are compared; none of a program that failed."""
    if "error" in line:
        return {}
    memory = line["memory"]
    return {
        "memory": memory["arguments"] + memory["temporaries"],
        "traffic": line["traffic"]["read"] + line["traffic"]["written"],
        "FLOPs": line["flops"],
        "collectives": sum(kind["bytes"] for kind in line["collectives"].values()),
        "code": memory["code"],
        "compile seconds": line["compile processor seconds"],
    }


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args()
    head = ("program", "chips", *NAMES)
    rows = [head, ("---",) * len(head), *ratios(read_lines(options.old), read_lines(options.new))]
    sys.stdout.write("".join(f"| {' | '.join(row)} |\n" for row in rows))


if __name__ == "__main__":
    main()

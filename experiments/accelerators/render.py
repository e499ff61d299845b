"""Table of the README, from the lines of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chips import find_chip
from plan import plan

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- table: python compile.py --render -->", "<!-- end of table -->"
HEAD = (
    "program", "chips", "arguments + temporaries, GiB of", "HBM traffic, GB", "TFLOP",
    "roofline, ms", "bound by", "collectives, GB", "gathers, scatters", "compiled in, s",
)  # fmt: skip
GIB = 2**30

Line = Mapping[str, Any]


def render(lines: Sequence[Line]) -> None:
    """Write the table between the README's markers."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    drawn = f"{table(lines)}\n{kernel_table(lines)}"
    README.write_text(f"{before}{BEGIN}\n\n{drawn}\n{END}{after}", encoding="utf-8")


def table(lines: Sequence[Line]) -> str:
    """Return a row for each line, per chip and step, in the order of the plan."""
    order = list(plan())
    known = sorted(
        (line for line in lines if line["name"] in order), key=lambda x: order.index(x["name"])
    )
    rows = [HEAD, ("---",) * len(HEAD), *map(_row, known)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def kernel_table(lines: Sequence[Line]) -> str:
    """Return the registers and spills of CUDA's kernels: the worst, and each of this project."""
    head = ("program", "kernels", "most registers", "kernels that spill", "this project's own")
    rows = [head, ("---",) * len(head)]
    for line in lines:
        if kernels := line.get("kernels"):
            own = (f"`{one['name']}` {one['registers']}" for one in kernels["own"])
            spilling = (f"{one['spills']} bytes" for one in kernels["spilling"])
            told = str(kernels["count"]), str(kernels["registers"])
            rows.append((line["name"], *told, ", ".join(spilling) or "none", ", ".join(own)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def roofline(line: Line) -> tuple[float, float]:
    """Return the seconds of the FLOPs and those of the traffic at the chip's peaks."""
    chip = find_chip(line["topology"])
    traffic = line["traffic"]["read"] + line["traffic"]["written"]
    return line["flops"] / chip.flops, traffic / chip.bandwidth


def _row(line: Line) -> tuple[str, ...]:
    chips = line["topology"] + (f", {line['mesh']}" if line["mesh"] else "")
    if "error" in line:
        return (line["name"], chips, line["error"], *("",) * (len(HEAD) - 3))
    chip, memory, traffic = find_chip(line["topology"]), line["memory"], line["traffic"]
    computing, moving = roofline(line)
    return (
        line["name"],
        chips,
        f"{memory['arguments'] / GIB:.3g} + {memory['temporaries'] / GIB:.3g} of "
        f"{chip.memory / GIB:.0f}",
        f"{(traffic['read'] + traffic['written']) / 1e9:.3g}",
        f"{line['flops'] / 1e12:.3g}",
        f"{1e3 * max(computing, moving):.3g}",
        "FLOPs" if computing > moving else "traffic",
        "; ".join(
            f"{found['count']} {kind}: {found['bytes'] / 1e9:.3g}"
            for kind, found in line["collectives"].items()
        ),
        f"{line['gathers']}, {line['scatters']}",
        f"{line['compile seconds']:.0f}",
    )

"""Draw how the ranks of a run grew: `python experiments/growth/draw.py RUN_FOLDER growth.png`."""

import json
import re
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("agg")
import matplotlib.pyplot as plt

PARTS = ("query", "key", "value", "attention.output", "intermediate", "output")
"""Dense layers of a transformer block, in the order of the forward pass."""


def read_ranks(results: dict) -> tuple[list[str], np.ndarray]:
    """Return the modules in forward order, and their ranks after every step [M, steps]."""
    modules = sorted(results["ranks"], key=_place)
    ranks = np.zeros((len(modules), results["steps"]), int)
    for row, module in enumerate(modules):
        ranks[row] = results["ranks"][module]
        for step, growth in results["rounds"].items():
            ranks[row, : int(step)] -= growth.get(module, 0)
    return modules, ranks


def draw(results: dict, path: Path) -> None:
    """Draw the total rank and its budget above, and the rank of every module below."""
    modules, ranks = read_ranks(results)
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8, 7.5), sharex=True, height_ratios=(1, 5), layout="constrained"
    )
    above.step(np.arange(ranks.shape[1]), ranks.sum(axis=0), where="post", color="black")
    above.axhline(results["rank_budget"], linestyle=":", color="grey")
    above.set_ylabel("total rank")
    above.set_title(f"{results['task']}: {len(results['rounds'])} rounds spend the budget")
    levels = np.arange(0.5, ranks.max() + 1.5)
    colours = plt.get_cmap("viridis_r", ranks.max())
    image = below.pcolormesh(ranks, cmap=colours, norm=mpl.colors.BoundaryNorm(levels, colours.N))
    below.set_yticks(np.arange(len(modules)) + 0.5, [_label(m) for m in modules], fontsize=7)
    below.invert_yaxis()
    below.set_xlabel("optimizer step")
    for step in results["rounds"]:
        below.axvline(int(step), color="white", linewidth=0.5)
    figure.colorbar(image, ax=below, label="rank", ticks=np.arange(1, ranks.max() + 1))
    figure.savefig(path, dpi=80)


def _place(module: str) -> tuple[int, int]:
    layer = re.search(r"layer\.(\d+)", module)
    return int(layer[1]) if layer else -1, PARTS.index(_part(module))


def _part(module: str) -> str:
    inner = re.sub(r".*layer\.\d+\.|\.dense$|attention\.self\.", "", module)
    return inner if inner in PARTS else PARTS[-1]


def _label(module: str) -> str:
    return f"{_place(module)[0]} {_part(module)}"


if __name__ == "__main__":
    folder, target = map(Path, sys.argv[1:])
    draw(json.loads((folder / "results.json").read_text()), target)

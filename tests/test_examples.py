"""What the examples show must be so."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "experiments" / "examples").glob("*.py"))

BUDGETS = {
    "equinox_mlp": 2 * 3,
    "gemma_lora": 2 * 3,
    "linen_transformer": 2 * 3 * 3,  # query, value and Dense_0 of three layers
    "nnx_attention": 2 * 6,
    "qwix_lora": 2 * 3,
    "tunix_trainer": 2 * (2 * 7 + 1),  # attention and MLP of two layers, and the output
}

BY_HAND = ("kauldron_lora",)  # its packages need TensorFlow


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path.stem not in BY_HAND], ids=lambda path: path.stem
)
def test_an_example_learns_and_spends_its_budget(path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path)])
    told = runpy.run_path(str(path), run_name="__main__")
    losses, ranks = told["losses"], told["ranks"]
    assert sum(ranks.values()) == BUDGETS[path.stem]
    # The frozen model knows nothing at the start; the last ten batches stand for the end.
    assert sum(losses[-10:]) / 10 < 0.6 * losses[0]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60

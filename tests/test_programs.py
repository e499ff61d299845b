"""Numbers are arguments of the compiled programs: a run with other numbers compiles nothing."""

import json

import pytest

from increlora_jax.train import main

PATHS = ("jit_step-", "jit_predict-")
"""What the names of the files of a run's programs begin with."""

OTHER = {
    "--seed": "3",
    "--learning-rate": "7e-4",
    "--warmup-steps": "2",
    "--weight-decay": "0.02",
    "--adam-beta1": "0.85",
    "--adam-beta2": "0.99",
    "--adam-epsilon": "1e-7",
    "--max-grad-norm": "0.3",
    "--max-steps": "9",
    "--max-skipped-steps": "3",
}
ADAPTERS = {"--lora-alpha": "12"}
GROWTH = {
    "--reg-orth-coef": "0.2",
    "--beta1": "0.8",
    "--beta2": "0.7",
    "--target-total-rank": "15",
    "--top-h": "1",
    "--init-warmup": "2",
    "--incre-interval": "2",
    "--score-window": "2",
}


@pytest.mark.parametrize(
    ("method", "other"),
    [
        ("increlora", OTHER | ADAPTERS | GROWTH),
        pytest.param("lora", OTHER | ADAPTERS, marks=pytest.mark.slow),
        ("full", OTHER),
        ("head", OTHER),
    ],
)
def test_a_run_with_other_numbers_compiles_nothing(method, other, short_words, tmp_path):
    cache = tmp_path / "programs"

    def run(name, words):
        command = [*short_words, "--no-packing", "--method", method, "--max-rank", "4", *words]
        where = ["--output-dir", str(tmp_path / name), "--compilation-cache-dir", str(cache)]
        main([*command, *where])
        assert json.loads((tmp_path / name / "results.json").read_text())["steps"]
        return {path.name for path in cache.iterdir() if path.name.startswith(PATHS)}

    first = run("first", ["--max-steps", "12"])
    assert {name.split("-")[0] for name in first if not name.endswith("atime")} == {
        "jit_step",
        "jit_predict",
    }
    assert run("second", [word for pair in other.items() for word in pair]) == first

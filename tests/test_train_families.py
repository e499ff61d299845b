"""Every family of base models through the training command, on a real GLUE task."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from increlora_jax import train
from increlora_jax.models.registry import MODELS
from tests.families import FAMILIES, make_folder


@pytest.mark.parametrize("family", FAMILIES)
def test_it_grows_to_its_budget_on_rte_and_growth_compiles_nothing(
    family, data_dir, short_run, tmp_path
):
    """GLUE's pairs of real sentences, cut short so that there is one length bucket."""
    words = [
        *short_run,
        *("--task", "rte", "--data-dir", str(data_dir / "glue" / "RTE")),
        *("--model", str(make_folder(family, tmp_path / "model"))),
        *("--target-rank", "2", "--top-h", "16", "--max-steps", "10"),
    ]
    train.main(words)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    ranks = results["ranks"].values()
    assert results["total_rank"] == results["rank_budget"] == sum(ranks) == 2 * len(ranks)
    assert results["rounds"]
    assert results["step_compilations"] == 2  # scored, and not scored
    assert set(results["metrics"]) == {"accuracy"}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_it_grows_alike_on_eight_devices(family, data_dir, short_run, tmp_path):
    """Its table of shardings is of use: base, adapters and batches divided in all three ways."""
    model = make_folder(family, tmp_path / "model")
    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    found = {}
    for mesh in ("data=8", "data=2,fsdp=2,tensor=2"):
        words = [
            *short_run,
            *("--task", "rte", "--data-dir", str(data_dir / "glue" / "RTE")),
            *("--model", str(model), "--target-rank", "2", "--top-h", "16", "--max-steps", "6"),
            *("--mesh", mesh, "--output-dir", str(tmp_path / mesh), "--train-batch-size", "16"),
        ]
        command = [sys.executable, "-m", "increlora_jax.train", *words]
        subprocess.run(command, env=flags, check=True)
        lines = (tmp_path / mesh / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
        rounds = json.loads((tmp_path / mesh / "results.json").read_text())["rounds"]
        found[mesh] = losses, rounds
    (one, rounds), (other, others) = found.values()
    assert rounds == others
    assert rounds
    # Dropout and growth are the same; float32 sums over devices are not.
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_no_family_is_left_out():
    same_code = {"xlm-roberta": "roberta", "mistral": "llama", "qwen2": "llama", "mt5": "t5"}
    assert {same_code.get(name, name) for name in MODELS} == set(FAMILIES)

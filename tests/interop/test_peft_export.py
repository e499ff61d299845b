"""LoRA folders for PEFT: read by PEFT itself, and by the rules of servers."""

import json
import re
from importlib.util import find_spec

import numpy as np
import pytest
from safetensors.numpy import load_file

from increlora_jax.export import main as export
from increlora_jax.interop.peft_files import CONFIG, HEAD, TENSORS
from increlora_jax.interop.proof import compute_outputs, compute_torch
from increlora_jax.nn.factors import factors_of
from increlora_jax.run.loading import load_trained
from increlora_jax.run.splits import choose_examples
from tests.families import FAMILIES

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="pip install '.[test]'")


def largest_difference(run, folder):
    """Between the run's logits and those of PEFT, beside the run's largest."""
    trained = load_trained(run)
    batches, _ = choose_examples(trained)
    own = compute_outputs(trained.model, batches)
    theirs = compute_torch(trained.model, folder, batches, is_peft=True)
    pairs = list(zip(own, theirs, strict=True))
    return max(np.abs(a - b).max() for a, b in pairs), max(np.abs(a).max() for a, _ in pairs)


@needs_peft
@pytest.mark.parametrize("layout", ["portable", "compact"])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_computes_the_same_for_every_family(drawn_run, family, layout, tmp_path, capsys):
    run, folder = drawn_run(family), tmp_path / "out"
    export(["--run", str(run), "--format", "peft", "--layout", layout,
            "--output-dir", str(folder)])  # fmt: skip
    difference, size = largest_difference(run, folder)
    assert difference <= 1e-5 * max(1, size)
    told = json.loads(capsys.readouterr().out)
    assert told["differences"].keys() == {"increlora_jax", "PEFT"}
    config = json.loads((folder / CONFIG).read_text())
    ranks = [own.rank for own in factors_of(load_trained(run).model.parts).values()]
    assert len(set(ranks)) >= 3
    assert len(config["target_modules"]) == sum(r > 0 or layout == "portable" for r in ranks)


def test_the_portable_layout_keeps_the_rules_of_servers(drawn_run, tmp_path):
    """As vLLM reads it: one r and one alpha, no patterns, nothing but A and B."""
    folder = tmp_path / "out"
    export(["--run", str(drawn_run("llama")), "--format", "peft", "--head", "separate",
            "--output-dir", str(folder)])  # fmt: skip
    config = json.loads((folder / CONFIG).read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["modules_to_save"] is None
    assert config["bias"] == "none"
    assert not config["use_rslora"]
    assert not config["use_dora"]
    assert config["r"] == config["lora_alpha"] <= 8
    tensors = load_file(folder / TENSORS)
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for key, value in tensors.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
        assert match[1].rpartition(".")[2] in names
        assert value.shape[0 if match[2] == "A" else 1] == config["r"]
        assert value.dtype == np.float32
    assert load_file(folder / HEAD).keys() == {"score.weight"}


def test_a_head_apart_is_read_again_with_its_adapter(drawn_run, tmp_path):
    folder = tmp_path / "out"
    run = drawn_run("bert")
    export(["--run", str(run), "--format", "peft", "--head", "separate",
            "--output-dir", str(folder)])  # fmt: skip
    trained = load_trained(run)
    batches, _ = choose_examples(trained)
    again = load_trained(folder)
    for own, other in zip(
        compute_outputs(trained.model, batches), compute_outputs(again.model, batches), strict=True
    ):
        np.testing.assert_allclose(own, other, atol=1e-5)


def test_a_compact_adapter_is_no_larger_than_its_numbers(drawn_run, tmp_path):
    folder = tmp_path / "out"
    run = drawn_run("bert", "--modules-to-save", "classifier")
    export(["--run", str(run), "--format", "peft", "--layout", "compact",
            "--output-dir", str(folder)])  # fmt: skip
    parts = load_trained(run).model.parts
    numbers = sum(f.left.size + f.right.size for f in factors_of(parts).values())
    numbers += sum(value.size for value in load_file(folder / TENSORS).values()
                   if value.shape in ((2, 16), (2,)))  # fmt: skip
    tensors = load_file(folder / TENSORS)
    assert sum(value.size for value in tensors.values()) <= numbers + 16 * 17  # a drawn pooler

"""Loading holds the weights once."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

# A tiny model first: what imports and compilation take is not the weights'.
SCRIPT = """
import sys, jax
from pathlib import Path
from flax import nnx
from increlora_jax.models.registry import load_model
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
load_model(Path(sys.argv[1]), num_labels=2)
before = peak()
model, _ = load_model(Path(sys.argv[2]), num_labels=2)
weights = jax.block_until_ready(jax.tree.leaves(nnx.state(model, nnx.Param)))
print((peak() - before) / sum(array.nbytes for array in weights))
"""


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_the_peak_is_at_most_1_3_of_the_weights(name, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    for folder, width, words in (("tiny", 32, 50), ("large", 512, 60_000)):
        config = BertConfig(
            vocab_size=words,
            hidden_size=width,
            num_hidden_layers=4,
            num_attention_heads=8,
            intermediate_size=4 * width,
        )
        model = BertForSequenceClassification(config)
        model.save_pretrained(tmp_path / folder)
        if name == "pytorch_model.bin":
            (tmp_path / folder / "model.safetensors").unlink()
            torch.save(model.state_dict(), tmp_path / folder / name)
    words = [sys.executable, "-c", SCRIPT, tmp_path / "tiny", tmp_path / "large"]
    finished = subprocess.run(words, capture_output=True, text=True, check=True)
    assert 0.9 < float(finished.stdout) < 1.3

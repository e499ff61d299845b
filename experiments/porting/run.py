"""Check the port against the original, then train two steps; flags of the training follow."""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from dan import DanConfig, register
from safetensors.numpy import load_file, save_file

import increlora_jax as il
from increlora_jax import train
from increlora_jax.models.registry import load_model

TOLERANCE = 1e-6
TWO_STEPS = (
    "--max-steps 2 --warmup-steps 0 --target-total-rank 3 --top-h 1 --init-warmup 0 "
    "--incre-interval 1"
)


def write_original(folder: Path, config: DanConfig) -> None:
    """Write a checkpoint as the original would: its names, kernels [out, in], a tokenizer."""
    shutil.copytree(il.TINY_ENCODER, folder, ignore=shutil.ignore_patterns("config.json"))
    config.save_pretrained(folder)
    draw, width = np.random.default_rng(0), config.hidden_size
    sizes = {f"dan.layers.{i}.dense": width for i in range(config.num_hidden_layers)}
    weights = {"dan.word_embeddings.weight": draw.normal(size=(config.vocab_size, width))}
    for name, outputs in (sizes | {"classifier": 2}).items():
        weights[f"{name}.weight"] = draw.normal(size=(outputs, width)) / width**0.5
        weights[f"{name}.bias"] = draw.normal(size=outputs)
    save_file(
        {name: array.astype(np.float32) for name, array in weights.items()},
        folder / "model.safetensors",
    )


def compute_original(folder: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Compute the original's logits: PyTorch in a real port, NumPy here."""
    weights = load_file(folder / "model.safetensors")
    words = weights["dan.word_embeddings.weight"][ids] * mask[..., None]
    state = words.sum(1) / mask.sum(1, keepdims=True)
    for name in ("dan.layers.0.dense", "dan.layers.1.dense"):
        state = np.tanh(state @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])
    return state @ weights["classifier.weight"].T + weights["classifier.bias"]


def main() -> None:
    """Compare the logits, then train two steps from the checkpoint."""
    register()
    with TemporaryDirectory() as work:
        folder = Path(work) / "dan"
        write_original(folder, DanConfig())
        ids, mask = np.array([[5, 9, 2, 0], [7, 8, 6, 4]]), np.array([[1, 1, 1, 0], [1] * 4])
        model, report = load_model(folder, num_labels=2)
        logits = np.asarray(model(ids, mask, np.zeros_like(ids)))
        assert report.describe() == (), report
        np.testing.assert_allclose(logits, compute_original(folder, ids, mask), atol=TOLERANCE)
        sys.stdout.write("the logits are the original's\n")
        words = f"--task demo --model {folder} --output-dir {work}/run {TWO_STEPS}"
        train.main([*words.split(), *sys.argv[1:]])


if __name__ == "__main__":
    main()

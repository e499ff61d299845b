"""Time to the first step of DeBERTa-v3-base, cold and from the compilation cache."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from flax import nnx

import increlora_jax
from increlora_jax.models.deberta import DEBERTA_WEIGHTS, DebertaForSequenceClassification
from increlora_jax.weights.folder import read_config, save_weights

DEBERTA_V3_BASE = {
    "model_type": "deberta-v2",
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 0,
    "vocab_size": 128100,
}

SETTINGS = (
    "--task demo --train-batch-size 8 --max-seq-length 64 --max-steps 4 --warmup-steps 1 "
    "--target-rank 2 --top-h 72 --init-warmup 1 --incre-interval 2"
)


def write_model(folder: Path) -> None:
    """Write a Hugging Face folder of DeBERTa-v3-base's shape, with the bundled tokenizer."""
    (folder / "config.json").write_text(json.dumps(DEBERTA_V3_BASE))
    model = DebertaForSequenceClassification(read_config(folder), num_labels=2, rngs=nnx.Rngs(0))
    save_weights(model, folder, DEBERTA_WEIGHTS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(increlora_jax.TINY_ENCODER) / name, folder)


def seconds_to_first_step(model: Path, cache: Path, run: Path, options: list[str]) -> float:
    """Train four steps, one of them a round, in a new process; return the seconds to the first.

    Args:
        model: The model's folder.
        cache: The folder of the compilation cache.
        run: The run's folder.
        options: Further flags of the training.
    """
    folders = {"--model": model, "--compilation-cache-dir": cache, "--output-dir": run}
    words = [str(word) for pair in folders.items() for word in pair]
    command = [sys.executable, "-m", "increlora_jax.train", *words, *SETTINGS.split(), *options]
    subprocess.run(command, check=True)
    return float(json.loads((run / "results.json").read_text())["seconds_to_first_step"])


def main() -> None:
    """Print the seconds of a first run and of the later ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1, help="runs from the cache")
    arguments, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        model.mkdir()
        write_model(model)
        for i, kind in enumerate(["cold"] + ["cached"] * arguments.repeats):
            run = Path(scratch) / f"run-{i}"
            seconds = seconds_to_first_step(model, Path(scratch) / "cache", run, options)
            sys.stdout.write(f"{kind}: {seconds:.1f} s to the first step\n")


if __name__ == "__main__":
    main()

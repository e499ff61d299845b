"""Tiny BERTs to compare with and to load from."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.models.bert import BERT_WEIGHTS, BertForSequenceClassification
from increlora_jax.weights.folder import read_config, save_weights

NUM_LABELS = 3
TINY = {
    "model_type": "bert",
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    # Ten times the usual, so that every term of the forward pass shows in the logits.
    "initializer_range": 0.2,
}


def write_config(folder, **changes):
    """Write the tiny `config.json` with some of its entries replaced, and read it back."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY | changes))
    return read_config(folder)


@pytest.fixture
def make_config(tmp_path):
    """Make a tiny configuration with some of its entries replaced."""
    return lambda **changes: write_config(tmp_path / "config", **changes)


@pytest.fixture
def make_reference(make_config, tmp_path):
    """Make a tiny model of PyTorch's transformers with random weights, and its saved folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def make(architecture="BertForSequenceClassification", **changes):
        torch.manual_seed(0)
        config = make_config(**{"num_labels": NUM_LABELS} | changes)
        config._attn_implementation = "eager"
        reference = getattr(transformers, architecture)(config).eval()
        with torch.no_grad():
            for parameter in reference.parameters():  # biases and norms away from 0 and 1 too
                parameter.add_(0.1 * torch.randn_like(parameter))
        folder = tmp_path / "reference"
        reference.save_pretrained(folder)
        return reference, folder

    return make


@pytest.fixture(scope="session")
def pristine_folder(tmp_path_factory) -> Path:
    """Save a tiny model of our own, once; no torch needed."""
    folder = tmp_path_factory.mktemp("pristine")
    config = write_config(folder)
    model = BertForSequenceClassification(config, num_labels=NUM_LABELS, rngs=nnx.Rngs(1))
    save_weights(model, folder, BERT_WEIGHTS)
    return folder


@pytest.fixture
def tiny_folder(pristine_folder, tmp_path) -> Path:
    """Copy the tiny model's folder, to be spoilt at will."""
    return Path(shutil.copytree(pristine_folder, tmp_path / "tiny"))


@pytest.fixture
def make_batch():
    """Draw token ids with padding at the end of each row but the first, and token types."""

    def make(batch=4, length=7):
        random = np.random.default_rng(length)
        lengths = np.array([length, *random.integers(1, length, size=batch - 1)])
        attention_mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
        return {
            "input_ids": random.integers(1, TINY["vocab_size"], (batch, length)) * attention_mask,
            "attention_mask": attention_mask,
            "token_type_ids": random.integers(0, 2, (batch, length)) * attention_mask,
        }

    return make


@pytest.fixture
def to_jax():
    return lambda batch: {name: jnp.asarray(array) for name, array in batch.items()}


@pytest.fixture
def to_torch():
    torch = pytest.importorskip("torch")
    return lambda batch: {name: torch.as_tensor(array).long() for name, array in batch.items()}

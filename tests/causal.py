"""Tiny causal models of PyTorch's transformers to compare with, and prompts for them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from increlora_jax.weights.folder import read_config

VOCAB_SIZE, PAD, NUM_LABELS = 37, 3, 3
CLASSES = {
    "causal_lm": "AutoModelForCausalLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "question_answering": "AutoModelForQuestionAnswering",
}
SHARED = {
    "vocab_size": VOCAB_SIZE,
    # Ten times the usual, so that every term of the forward pass shows in the logits.
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": PAD,
    "num_labels": NUM_LABELS,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


def write_config(folder: Path, kind: str, **changes: Any) -> Any:
    """Write a tiny `config.json` with some of its entries replaced, and read it back."""
    folder.mkdir(exist_ok=True)
    sizes = GPT2 if kind == "gpt2" else LLAMA
    content = {"model_type": kind} | SHARED | sizes | changes
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return read_config(folder)


def save_reference(folder: Path, kind: str, head: str = "causal_lm", **changes: Any) -> Any:
    """Make a tiny model of random weights, nothing in it 0 or 1, and save it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = write_config(folder, kind, **changes)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    reference = getattr(transformers, CLASSES[head]).from_config(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    reference.save_pretrained(folder)
    return reference


class Prompts(NamedTuple):
    """Token ids padded left, right and not at all, and the positions that follow from the mask."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    position_ids: np.ndarray

    @classmethod
    def draw(cls, *padding: int, length: int = 7) -> "Prompts":
        """Draw a row per number: so many pads on the left, or, below 0, on the right."""
        slots = np.arange(length)
        mask = np.array([(slots >= pad) & (slots < length + min(pad, 0)) for pad in padding])
        drawn = np.random.default_rng(0).integers(PAD + 1, VOCAB_SIZE, mask.shape)
        positions = np.maximum(mask.cumsum(1) - 1, 0)
        return cls(np.where(mask, drawn, PAD), mask.astype(int), positions)

    def to_torch(self, *names: str) -> dict[str, Any]:
        """Hand the arrays over by name; all of them unless some are named."""
        torch = pytest.importorskip("torch")
        return {name: torch.as_tensor(getattr(self, name)) for name in names or self._fields}

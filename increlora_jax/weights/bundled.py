"""The encoder that comes with the package."""

from importlib import resources
from pathlib import Path

TINY_ENCODER = Path(str(resources.files("increlora_jax").joinpath("bundled", "tiny_encoder")))
"""The folder of a small pretrained BERT with its tokenizer, to be used as any model's folder.

2 layers of 128 features, 128 positions, 6,000 pieces of English words, lower case; pretrained on
film reviews and news by `experiments/pretrain_tiny/make.py`.
"""

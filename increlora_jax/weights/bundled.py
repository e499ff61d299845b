"""The encoder that comes with the package."""

from importlib import resources
from pathlib import Path

TINY_ENCODER = Path(str(resources.files("increlora_jax").joinpath("bundled", "tiny_encoder")))
"""Folder of a small pretrained BERT and its tokenizer, for use as any model's folder.

The encoder has 2 layers of 128 features, 128 positions and 6,000 lower-case pieces of English
words. `experiments/pretrain_tiny/make.py` pretrained it on film reviews and news.

Example:
    >>> import increlora_jax as il
    >>> sorted(path.name for path in il.TINY_ENCODER.glob("*.json"))
    ['config.json', 'tokenizer.json', 'tokenizer_config.json']
"""

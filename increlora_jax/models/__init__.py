"""Pretrained models as plain NNX modules, and their Hugging Face weights in and out."""

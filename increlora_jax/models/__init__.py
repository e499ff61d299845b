"""Pretrained models as plain NNX modules, with their Hugging Face names of weights."""

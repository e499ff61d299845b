"""IncreLoRA in JAX and Flax: low-rank fine-tuning whose rank grows during training."""

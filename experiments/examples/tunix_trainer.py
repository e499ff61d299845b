"""Tunix's own PeftTrainer on its Qwen3; `il.growth` grows the ranks inside its optimizer.

It needs `pip install qwix`, and then `pip install --no-deps -r tests/hosts.txt`.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen3.model import ModelConfig, Qwen3
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput

import increlora_jax as il

STEPS, LENGTH, VOCABULARY = 60, 16, 64
SHAPE = ModelConfig(
    num_layers=2, vocab_size=VOCABULARY, embed_dim=32, hidden_dim=64, num_heads=4, head_dim=8,
    num_kv_heads=2, rope_theta=10_000, norm_eps=1e-6,
)  # fmt: skip


def batches() -> list[TrainingInput]:
    """Count upwards from a random number."""
    draw, mask = np.random.default_rng(0), np.ones((8, LENGTH), np.int32)
    starts = draw.integers(0, VOCABULARY, (STEPS, 8, 1))
    return [TrainingInput((start + np.arange(LENGTH)) % VOCABULARY, mask) for start in starts]


def inputs(batch: TrainingInput) -> dict[str, jnp.ndarray]:
    """Give the arguments of tunix's default loss."""
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), (8, LENGTH, LENGTH))
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (8, LENGTH))
    return {"input_tokens": batch.input_tokens, "input_mask": batch.input_mask,
            "positions": positions, "attention_mask": causal}  # fmt: skip


def main(folder: str | None = None) -> tuple[list[float], dict[str, int]]:
    """Train; return losses and ranks. In a folder, tunix writes checkpoints and resumes."""
    model = Qwen3(SHAPE, rngs=nnx.Rngs(0))
    grow = il.growth(model, optax.adamw(2e-2), steps=STEPS, growth=il.GrowthConfig(target_rank=2))
    config = TrainingConfig(
        eval_every_n_steps=1000, max_steps=STEPS,
        checkpoint_root_directory=str(Path(folder).resolve()) if folder else None,
    )  # fmt: skip
    trainer = PeftTrainer(model, grow, config).with_gen_model_input_fn(inputs)
    trainer.train(batches())
    il.settle(model, trainer.optimizer)
    losses = trainer.metrics_logger.get_metric_history("", "loss", "train").tolist()
    return losses, il.ranks_of(trainer.optimizer)


if __name__ == "__main__":
    losses, ranks = main(*sys.argv[1:])
    sys.stdout.write(f"loss {losses[0]:.2f} → {losses[-1]:.2f}; ranks {ranks}\n")

"""IncreLoRA on a stack of `flax.nnx.MultiHeadAttention`, in a custom training loop."""

import sys

import jax
import optax
from flax import nnx

import increlora_jax as il

STEPS, WIDTH, TARGETS = 60, 16, ["query", "value", "dense.0", "dense.1"]


class Classifier(nnx.Module):
    """Blocks of attention and one dense layer each, and a head on the mean of the tokens."""

    def __init__(self, blocks: int, rngs: nnx.Rngs):
        self.attention = nnx.List(
            [nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs) for _ in range(blocks)]
        )
        self.dense = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(blocks)])
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the logits."""
        for attention, dense in zip(self.attention, self.dense, strict=True):
            x = x + attention(x)
            x = x + nnx.gelu(dense(x))
        return self.head(x.mean(axis=1))


def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def main() -> tuple[list[float], dict[str, int]]:
    """Train; return the loss of every step and the rank of every module."""
    model = Classifier(2, nnx.Rngs(0))
    growth = il.GrowthConfig(target_rank=2, top_h=2, init_warmup=5, incre_interval=5)
    method = il.increlora(model, steps=STEPS, growth=growth, targets=TARGETS)
    config = il.TrainingConfig(learning_rate=2e-2, warmup_steps=5)
    trainer, state, base = il.prepare(model, method, config, total_steps=STEPS)

    @jax.jit
    def step(state: il.TrainState, base: dict, x: jax.Array, y: jax.Array) -> tuple:
        _, gradients = trainer.value_and_grad(loss)(state, base, x, y)
        return trainer.update(state, gradients)

    losses = []
    for t in range(STEPS):
        x = jax.random.normal(jax.random.key(t), (64, 3, WIDTH))
        state, info = step(state, base, x, (x[:, :, 0].sum(1) > 0).astype(int))
        losses.append(float(info["loss"]))
    return losses, il.report(trainer.parts(state, base)).ranks


if __name__ == "__main__":
    losses, ranks = main()
    sys.stdout.write(f"loss {losses[0]:.2f} → {losses[-1]:.2f}; ranks {ranks}\n")

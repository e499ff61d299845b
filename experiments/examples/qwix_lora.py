"""The LoRA of qwix, whose pairs `il.growth` grows inside the optimizer; the model stays qwix's."""

import sys

import jax
import numpy as np
import optax
import qwix
from flax import nnx

import increlora_jax as il

STEPS, WIDTH, SLOTS, ALPHA = 60, 16, 8, 16.0


class Classifier(nnx.Module):
    """A stranger's model: three hidden layers and a frozen head."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(3)])
        self.out = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute two logits."""
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.out(x)


def loss(model: Classifier, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


@nnx.jit
def step(model: Classifier, optimizer: nnx.Optimizer, x: jax.Array) -> jax.Array:
    """Take a step as every loop of NNX does."""
    grad = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))
    value, gradients = grad(model, x, (x[:, 0] > x[:, 1]).astype(int))
    optimizer.update(model, gradients)
    return value


def main() -> tuple[list[float], dict[str, int]]:
    """Train; return the loss of every step and the rank of every layer."""
    rule = qwix.LoraProvider(module_path="hidden/.*", rank=SLOTS, alpha=ALPHA)
    model = Classifier(nnx.Rngs(0))
    model = qwix.apply_lora_to_model(model, rule, np.ones((1, WIDTH)), rngs=nnx.Rngs(1))
    growth = il.GrowthConfig(target_rank=2, top_h=1, init_warmup=5, incre_interval=5)
    own = {"growth": growth, "pairs": il.Pairs(scale=ALPHA / SLOTS)}
    grow = il.growth(model, optax.adamw(3e-2), steps=STEPS, **own)
    optimizer = nnx.Optimizer(model, grow, wrt=nnx.LoRAParam)
    data = np.random.default_rng(0).normal(size=(STEPS, 64, WIDTH)).astype(np.float32)
    losses = [float(step(model, optimizer, x)) for x in data]
    return losses, il.ranks_of(optimizer)


if __name__ == "__main__":
    losses, ranks = main()
    sys.stdout.write(f"loss {losses[0]:.2f} → {losses[-1]:.2f}; ranks {ranks}\n")

"""LoRA of gemma in Linen, grown in place (`pip install --no-deps -r tests/hosts.txt`)."""

import sys

import jax
import optax
from flax import linen as nn
from gemma import peft

import increlora_jax as il

STEPS, WIDTH, SLOTS = 60, 16, 8


class Classifier(nn.Module):
    """Three layers with gemma's adapters, and a frozen head."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute two logits."""
        for i in range(3):
            x = nn.relu(peft.LoRADense(rank=SLOTS, wrapped=nn.Dense(WIDTH), name=f"layer_{i}")(x))
        return nn.Dense(2)(x)


def label(params: dict) -> dict:
    """Train the pairs, as `kd.optim.partial_updates(grow, mask=kd.optim.select("lora"))` does."""
    named = jax.tree_util.tree_map_with_path(lambda path, _: "lora" in str(path), params)
    return jax.tree.map({True: "train", False: "freeze"}.get, named)


def main() -> tuple[list[float], dict[str, int]]:
    """Train; return the loss of every step and the rank of every layer."""
    model, x = Classifier(), jax.random.normal(jax.random.key(0), (64, WIDTH))
    params = model.init(jax.random.key(0), x)["params"]
    growth = il.GrowthConfig(target_rank=2, top_h=1, init_warmup=5, incre_interval=5)
    grow = il.growth(params, optax.adamw(3e-2), steps=STEPS, growth=growth, pairs=il.Pairs(1.0))
    optimizer = optax.multi_transform({"train": grow, "freeze": optax.set_to_zero()}, label)

    @jax.jit
    def step(params: dict, state: tuple, x: jax.Array, y: jax.Array) -> tuple:
        def loss(params: dict) -> jax.Array:
            logits = model.apply({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return value, optax.apply_updates(params, updates), state

    losses, state = [], optimizer.init(params)
    for t in range(STEPS):
        x = jax.random.normal(jax.random.key(t), (64, WIDTH))
        value, params, state = step(params, state, x, (x[:, 0] > x[:, 1]).astype(int))
        losses.append(float(value))
    return losses, il.ranks_of(state)


if __name__ == "__main__":
    losses, ranks = main()
    sys.stdout.write(f"loss {losses[0]:.2f} → {losses[-1]:.2f}; ranks {ranks}\n")

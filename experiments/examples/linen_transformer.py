"""IncreLoRA on a Linen transformer whose layers are scanned; its params tree is not touched."""

import sys

import flax.linen as nn
import jax
import optax

import increlora_jax as il

STEPS, WIDTH, TARGETS = 60, 16, ["query", "value", "Dense_0"]


class Block(nn.Module):
    """A layer, in the form that `nn.scan` needs."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """Attend, then transform."""
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(x, x)
        return x + nn.gelu(nn.Dense(WIDTH)(x)), None


class Transformer(nn.Module):
    """Scanned layers, and a head on the mean of the tokens."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the logits."""
        layers = nn.scan(Block, {"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(2, name="head")(layers(name="layers")(x, None)[0].mean(axis=1))


def main() -> tuple[list[float], dict[str, int]]:
    """Train; return the loss of every step and the rank of every layer's modules."""
    x = jax.random.normal(jax.random.key(0), (64, 3, WIDTH))
    model = il.LinenModel(Transformer(), Transformer().init(jax.random.key(0), x), x)
    growth = il.GrowthConfig(target_rank=2, top_h=3, init_warmup=5, incre_interval=5)
    method = il.increlora(model, steps=STEPS, growth=growth, targets=TARGETS)
    config = il.TrainingConfig(learning_rate=2e-2, warmup_steps=5)
    trainer, state, base = il.prepare(model, method, config, total_steps=STEPS)

    @jax.jit
    def step(state: il.TrainState, base: dict, x: jax.Array, y: jax.Array) -> tuple:
        def loss(model):  # `model` is called like the module's `apply`, without variables
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        return trainer.update(state, trainer.value_and_grad(loss)(state, base)[1])

    losses = []
    for t in range(STEPS):
        x = jax.random.normal(jax.random.key(t), (64, 3, WIDTH))
        state, info = step(state, base, x, (x[:, :, 0].sum(1) > 0).astype(int))
        losses.append(float(info["loss"]))
    return losses, il.report(trainer.parts(state, base)).ranks


if __name__ == "__main__":
    losses, ranks = main()
    sys.stdout.write(f"loss {losses[0]:.2f} → {losses[-1]:.2f}; ranks {ranks}\n")

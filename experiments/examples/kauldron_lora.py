"""LoRA of gemma, grown by the trainer of Kauldron (`pip install kauldron gemma tensorflow`)."""

import sys
import tempfile

import jax
import numpy as np
import optax
from flax import linen as nn
from gemma import peft
from kauldron import kd

import increlora_jax as il

STEPS, WIDTH, SLOTS = 60, 16, 8


class Classifier(nn.Module):
    """Three layers with gemma's adapters, and a frozen head."""

    x: kd.kontext.Key = "batch.x"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute two logits."""
        for i in range(3):
            x = nn.relu(peft.LoRADense(rank=SLOTS, wrapped=nn.Dense(WIDTH), name=f"layer_{i}")(x))
        return nn.Dense(2)(x)


def draw() -> dict[str, np.ndarray]:
    """Draw rows whose label is the larger of their first two numbers."""
    x = np.random.default_rng(0).normal(size=(4096, WIDTH)).astype(np.float32)
    return {"x": x, "y": (x[:, :1] > x[:, 1:2]).astype(np.int32)}


def main() -> tuple[kd.train.TrainState, dict[str, int]]:
    """Train; return Kauldron's state and the rank of every layer."""
    model = Classifier()
    params = jax.eval_shape(model.init, jax.random.key(0), draw()["x"])["params"]
    growth = il.GrowthConfig(target_rank=2, top_h=1, init_warmup=5, incre_interval=5)
    grow = il.growth(params, optax.adamw(3e-2), steps=STEPS, growth=growth, pairs=il.Pairs(1.0))
    trainer = kd.train.Trainer(
        workdir=tempfile.mkdtemp(),
        train_ds=kd.data.InMemoryPipeline(loader=draw, batch_size=64, shuffle=True),
        model=model,
        num_train_steps=STEPS,
        log_metrics_every=10,
        train_losses={
            "loss": kd.losses.SoftmaxCrossEntropyWithIntLabels(logits="preds", labels="batch.y")
        },
        optimizer=kd.optim.partial_updates(grow, mask=kd.optim.select("lora")),
    )
    state, _ = trainer.train()
    return state, il.ranks_of(state.opt_state)


if __name__ == "__main__":
    sys.stdout.write(f"ranks {main()[1]}\n")

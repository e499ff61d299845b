"""IncreLoRA on an Equinox MLP, or any other pytree of parameters, by effective weights."""

import sys

import equinox as eqx
import jax
import optax

import increlora_jax as il

STEPS, WIDTH = 60, 16
WEIGHTS = r"layers\.\d+\.weight"


def loss(model: eqx.nn.MLP, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean cross-entropy; the model is the user's own, with weights W + ΔW."""
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


def main() -> tuple[list[float], dict[str, int]]:
    """Train; return the loss of every step and the rank of every weight."""
    model = eqx.nn.MLP(WIDTH, 2, width_size=32, depth=3, key=jax.random.key(0))
    growth = il.GrowthConfig(target_rank=2, top_h=1, init_warmup=5, incre_interval=5)
    method = il.increlora(
        model,
        steps=STEPS,
        targets=WEIGHTS,
        exclude=r"layers\.3\.weight",
        parameters={WEIGHTS: il.KernelAxes(inputs=(1,), outputs=(0,))},  # Equinox has [out, in]
        adapter=il.AdapterConfig(),
        growth=growth,
        is_trained=il.parameter_selector(model, ["layers.3"]),
    )
    config = il.TrainingConfig(learning_rate=2e-2, warmup_steps=5)
    trainer, state, base = il.prepare(model, method, config, total_steps=STEPS)

    @jax.jit
    def step(state: il.TrainState, base: dict, x: jax.Array, y: jax.Array) -> tuple:
        _, gradients = trainer.value_and_grad(loss)(state, base, x, y)
        return trainer.update(state, gradients)

    losses = []
    for t in range(STEPS):
        x = jax.random.normal(jax.random.key(t), (64, WIDTH))
        state, info = step(state, base, x, (x[:, 0] > x[:, 1]).astype(int))
        losses.append(float(info["loss"]))
    return losses, il.report(trainer.parts(state, base)).ranks


if __name__ == "__main__":
    losses, ranks = main()
    sys.stdout.write(f"loss {losses[0]:.2f} → {losses[-1]:.2f}; ranks {ranks}\n")

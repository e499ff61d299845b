"""A model small enough to train in a test, and the pieces of a run put together around it."""

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from increlora_jax.config import TrainingConfig
from increlora_jax.nn.skeleton import Parts, split
from increlora_jax.training.prepare import build_trainer
from increlora_jax.training.state import TrainState
from increlora_jax.training.step import Trainer

FEATURES, WIDTH, CLASSES, LAYERS = 6, 8, 3, 4
MODULES = [f"layers.{i}" for i in range(LAYERS)]


class MLP(nnx.Module):
    """head(tanh(layer_n(… tanh(layer_0(x)))))."""

    def __init__(self, dtype: Any = jnp.float32, layers: int = LAYERS):
        linear = partial(nnx.Linear, rngs=nnx.Rngs(0), param_dtype=dtype)
        sizes = [FEATURES] + [WIDTH] * layers
        self.layers = nnx.List([linear(*pair) for pair in pairwise(sizes)])
        self.head = linear(WIDTH, CLASSES)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.head(x)


def cross_entropy(model: nnx.Module, batch: dict) -> tuple[jax.Array, jax.Array]:
    """The summed loss of a batch's rows, weighted."""
    losses = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])
    return jnp.sum(losses * batch["weight"]), jnp.sum(batch["weight"])


def batch_of(rows: int = 8, seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Random rows of weight 1."""
    draw = np.random.default_rng(seed)
    return {
        "x": draw.normal(size=(rows, FEATURES)).astype(dtype),
        "y": draw.integers(0, CLASSES, rows),
        "weight": np.ones(rows, dtype),
    }


def trains_head(path: str) -> bool:
    """The label of a run that trains its head in full."""
    return path.startswith("head.")


class Start(NamedTuple):
    """A run before its first step."""

    trainer: Trainer
    parts: Parts
    state: TrainState
    step: Any  # jitted


def start(
    method: Any,
    *,
    steps: int,
    dtype: Any = jnp.float32,
    model: nnx.Module | None = None,
    loss: Any = cross_entropy,
    is_called_once: bool = False,
    **training: Any,
) -> Start:
    """Attach `method` to a model and make everything ready for `steps` steps."""
    model = method.attach(MLP(dtype) if model is None else model, nnx.Rngs(1))
    skeleton, parts = split(model, method.is_trained, is_called_once=is_called_once)
    config = TrainingConfig(**({"learning_rate": 0.02, "warmup_steps": 2} | training))
    trainer = build_trainer(
        skeleton,
        method,
        loss,
        config,
        total_steps=steps,
        dtype=dtype,
    )
    step = jax.jit(trainer.step, static_argnames="is_scored")
    return Start(trainer, parts, trainer.init(parts, seed=0), step)


def run(begun: Start, steps: int, batches: Any = batch_of) -> list[tuple[TrainState, dict]]:
    """Train as the loop does: score while the method wants it; returns every state and info."""
    state, history = begun.state, []
    method = begun.trainer.method
    for step in range(steps):
        is_scored = method.is_scored(step, method.is_finished(int(state.total_rank)))
        batch = batches(seed=step)
        state, info = begun.step(state, begun.parts.base, batch, is_scored=is_scored)
        history.append((state, info))
    return history


def assert_same(got: Any, expected: Any) -> None:
    """Bit for bit, random keys included."""
    jax.tree.map(_assert_same_leaf, got, expected)


def _assert_same_leaf(got: jax.Array, expected: jax.Array) -> None:
    if jnp.issubdtype(got.dtype, jax.dtypes.prng_key):
        got, expected = jax.random.key_data(got), jax.random.key_data(expected)
    np.testing.assert_array_equal(got, expected)


def without(words, *flags):
    """Leave flags out of the words of a command, each with its one value."""
    for flag in flags:
        place = words.index(flag)
        words = words[:place] + words[place + 2 :]
    return words

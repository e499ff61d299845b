"""From a model and a method to a trainer and its first state, for a loop of one's own."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from increlora_jax.config import TrainingConfig
from increlora_jax.methods.base import Method
from increlora_jax.nn.model import split
from increlora_jax.training.state import TrainState
from increlora_jax.training.step import Base, Loss, Trainer, build_trainer, no_loss


def prepare(
    model: Any,
    method: Method,
    config: TrainingConfig,
    *,
    total_steps: int,
    loss: Loss = no_loss,
    seed: int = 0,
    dtype: Any = jnp.float32,
    is_called_once: bool = False,
) -> tuple[Trainer, TrainState, Base]:
    """Attach `method` to `model`, and make its trainer, the state before step 0, and its base.

    `model` is an NNX module, which is changed in place, a `LinenModel`, or a pytree of parameters.
    A loop calls `trainer.value_and_grad(loss)` and `trainer.update`, or, where `loss` is given as
    a `Loss`, `trainer.step`; in the end `trainer.merge`.

    `is_called_once` may be said of an NNX module of which a loss calls every adapted layer once: a
    scored step then holds the dense gradient of one layer at a time, and not of all of them.
    """
    adapted = method.attach(model, nnx.Rngs(seed))
    skeleton, parts = split(adapted, method.is_trained, is_called_once=is_called_once)
    trainer = build_trainer(skeleton, method, loss, config, total_steps=total_steps, dtype=dtype)
    return trainer, trainer.init(parts, seed), parts.base

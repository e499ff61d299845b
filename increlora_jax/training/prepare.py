"""From a model and a method to a trainer and its first state, for a loop of one's own."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from increlora_jax.config import TrainingConfig
from increlora_jax.errors import InputError
from increlora_jax.methods.base import Method
from increlora_jax.nn.any_model import split
from increlora_jax.training.state import TrainState
from increlora_jax.training.step import Base, Loss, Trainer, build_trainer, no_loss


def prepare(
    model: Any,
    method: Method,
    config: TrainingConfig = TrainingConfig(),
    *,
    total_steps: int,
    loss: Loss = no_loss,
    seed: int = 0,
    dtype: Any = jnp.float32,
    is_called_once: bool = False,
) -> tuple[Trainer, TrainState, Base]:
    """Attach `method` to `model`, and make its trainer, the state before step 0, and its base.

    A loop calls `trainer.value_and_grad(loss)` and `trainer.update`, or with `loss` given here
    `trainer.step`; in the end `trainer.merge`.

    Args:
        model: an NNX module, which is changed in place, a `LinenModel`, or a pytree of parameters.
        method: what `il.increlora` and its like return for this model.
        config: learning rate, warmup and the optimizer's other settings.
        total_steps: optimizer steps of the run.
        loss: (model, batch) → (sum of the losses [], sum of their weights []).
        seed: of adapters, dropout and whatever else is drawn.
        dtype: of learning rates and the optimizer's other numbers.
        is_called_once: a loss calls each adapted NNX layer once: one dense gradient is held then.

    Raises:
        InputError: the model cannot have the targets or ranks, or `method` is for other steps.

    >>> import increlora_jax as il
    >>> params = {"w": jnp.ones((4, 4))}
    >>> trainer, state, base = il.prepare(params, il.lora(params), total_steps=10)
    >>> int(state.total_rank), sorted(base)
    (2, ['w'])
    """
    _check_steps(method, total_steps)
    model = method.attach(model, nnx.Rngs(seed))
    skeleton, parts = split(model, method.is_trained, is_called_once=is_called_once)
    trainer = build_trainer(skeleton, method, loss, config, total_steps=total_steps, dtype=dtype)
    return trainer, trainer.init(parts, seed), parts.base


def _check_steps(method: Method, total_steps: int) -> None:
    if method.steps not in (None, total_steps):
        raise InputError(
            f"total_steps={total_steps}, but {method.name}'s growth was planned for {method.steps} "
            "steps; give both the same number"
        )

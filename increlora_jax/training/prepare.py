"""A trainer and its first state from a model and a method, for a loop of the user's own.

A loop calls `Trainer.value_and_grad` and `Trainer.update`, or `Trainer.step` if the trainer has a
loss. At the end, `Trainer.merge` returns a plain model.
"""

import warnings
from functools import partial

import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from increlora_jax.config import TrainingConfig
from increlora_jax.core.named_optimizers import Betas, build_named_optimizer
from increlora_jax.core.optimizer import RateRatios
from increlora_jax.core.pace import choose_warmup
from increlora_jax.core.schedule import SHAPES, Shape, rate_at
from increlora_jax.core.slotwise import find_kind, slotwise, whole
from increlora_jax.errors import InputError
from increlora_jax.methods.base import Method, Settings
from increlora_jax.nn.any_model import split
from increlora_jax.nn.rules import Rules
from increlora_jax.nn.skeleton import Parts, Skeleton
from increlora_jax.training.state import TrainState
from increlora_jax.training.step import Base, Loss, Rate, Trainer, no_loss

OF_OPTIMIZER = (
    "optimizer", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "max_grad_norm", "lora_plus_ratio", "lambda_lr_ratio",
)  # fmt: skip
"""Settings of the optimizer, which another one replaces."""


def prepare(
    model: PyTree,
    method: Method,
    config: TrainingConfig = TrainingConfig(),
    *,
    total_steps: int,
    loss: Loss = no_loss,
    optimizer: optax.GradientTransformation | None = None,
    seed: int = 0,
    dtype: DTypeLike = jnp.float32,
    is_called_once: bool = False,
) -> tuple[Trainer, TrainState, Base]:
    """Attach a method to a model; return its trainer, its first state, and its base.

    Args:
        model: an NNX module, which is changed in place, a `LinenModel`, or a pytree of parameters.
        method: the method for this model, as `il.increlora` returns it.
        config: learning rate, warmup and other settings of the optimizer; default: its defaults.
        total_steps: optimizer steps of the run.
        loss: (model, batch) → (sum of the losses [], sum of their weights []); default: none.
        optimizer: any optax transformation, in the configuration's place; see `il.slotwise`.
        seed: of all random numbers; default 0.
        dtype: of the settings that are not whole, and of learning rates; default float32.
        is_called_once: whether a loss calls each adapted NNX layer once, which saves memory.

    Returns:
        The trainer, the state before step 0, and the frozen base weights by path.

    Raises:
        InputError: the model cannot have the targets or ranks, or `method` is for other steps.

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> params = {"w": jnp.ones((4, 4))}
    >>> sorted(il.prepare(params, il.lora(params), total_steps=10)[-1])
    ['w']
    """
    skeleton, parts = _adapt(model, method, total_steps, seed, is_called_once)
    trainer = build_trainer(skeleton, method, loss, config, total_steps=total_steps, dtype=dtype)
    trainer = _with_optimizer(trainer, optimizer, config)
    return trainer, trainer.init(parts, seed), parts.base


def _with_optimizer(
    trainer: Trainer, optimizer: optax.GradientTransformation | None, config: TrainingConfig
) -> Trainer:
    """Return a trainer whose parameters are moved by a transformation of the user's own, if any."""
    if optimizer is None:
        return trainer
    usual = TrainingConfig()
    told = [name for name in OF_OPTIMIZER if getattr(config, name) != getattr(usual, name)]
    if told:
        raise InputError(
            f"optimizer: {', '.join(told)} of config would have no effect beside an optimizer of "
            "your own. Set it there, and leave it out of config"
        )
    kind = find_kind(optimizer)
    own = slotwise(optimizer) if kind == "slotwise" else whole(optimizer)
    if kind == "mixing":
        warnings.warn(
            "optimizer: it mixes the entries of a matrix or of several. Slots born later "
            "share its counts and schedules. Wrap the parts of a chain that do not, as "
            "il.slotwise(optax.adamw(1e-3))",
            stacklevel=3,
        )
    return trainer._replace(optimizer=lambda settings: own, rate=None)


def _adapt(
    model: PyTree, method: Method, total_steps: int, seed: int, is_called_once: bool
) -> tuple[Skeleton, Parts]:
    """Attach a method that is planned for these steps, and take the model apart."""
    if method.steps not in (None, total_steps):
        raise InputError(
            f"total_steps={total_steps}, but {method.name}'s growth was planned for {method.steps} "
            "steps. Give both the same number"
        )
    own = method.attach(model, nnx.Rngs(seed))
    return split(own, method.is_trained, is_called_once=is_called_once)


def build_trainer(
    skeleton: Skeleton,
    method: Method,
    loss: Loss,
    config: TrainingConfig,
    *,
    total_steps: int,
    dtype: DTypeLike = jnp.float32,
) -> Trainer:
    """Build the trainer of a model taken apart; `il.prepare` is the short way.

    Args:
        skeleton: the model without its arrays, from `il.split`.
        method: the method that the model was adapted with.
        loss: (model, batch) → (sum of the losses [], sum of their weights []).
        config: settings of the optimizer and the learning rate.
        total_steps: optimizer steps of the run.
        dtype: of the settings that are not whole, and of learning rates; default float32.

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> from flax import nnx
    >>> method = il.lora({"w": jnp.ones((4, 4))})
    >>> adapted = method.attach({"w": jnp.ones((4, 4))}, nnx.Rngs(0))
    >>> skeleton, parts = il.split(adapted, method.is_trained)
    >>> loss = lambda model, x: (jnp.sum(x @ model["w"]), x.shape[0])
    >>> config = il.TrainingConfig(learning_rate=0.5)
    >>> trainer = il.build_trainer(skeleton, method, loss, config, total_steps=10)
    >>> float(trainer.init(parts, seed=0).settings["learning_rate"])
    0.5
    """
    settings = {
        **_numbers_of(config, total_steps),
        **_numbers_of_scale(skeleton.rules),
        "reg_orth_coef": float(method.regularization),
        **method.settings,
    }
    accumulation = config.gradient_accumulation_steps
    rate = partial(_rate_of, SHAPES[config.lr_scheduler_type], method.restart_warmup, dtype)
    optimizer = partial(_optimizer_of, config.optimizer, rate)
    return Trainer(skeleton, method, loss, rate, optimizer, accumulation, settings, dtype)


def _rate_of(
    shape: Shape,
    restart_warmup: bool,
    dtype: DTypeLike,
    settings: Settings,
    step: Array,
    born: Array,
) -> Array:
    """Return the learning rate by a state's settings."""
    return rate_at(
        step,
        born,
        learning_rate=settings["learning_rate"],
        warmup_steps=settings["warmup_steps"],
        total_steps=settings["total_steps"],
        restart_warmup=restart_warmup,
        shape=shape,
        dtype=dtype,
    )


def _optimizer_of(
    name: str, rate: Rate, settings: Settings
) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer of a state's settings."""
    return build_named_optimizer(
        name,
        partial(rate, settings),
        max_grad_norm=settings["max_grad_norm"],
        ratios=RateRatios(settings["lambda_lr_ratio"], settings["lora_plus_ratio"]),
        betas=Betas(*(settings[name] for name in ("adam_beta1", "adam_beta2", "adam_epsilon"))),
        weight_decay=settings["weight_decay"],
    )


def _numbers_of(config: TrainingConfig, total_steps: int) -> dict[str, int | float]:
    """Return the numbers of schedule and optimizer, by flag."""
    return {
        "learning_rate": float(config.learning_rate),
        "warmup_steps": choose_warmup(config.warmup_steps, total_steps),
        "total_steps": int(total_steps),
        "lora_plus_ratio": float(config.lora_plus_ratio),
        "lambda_lr_ratio": float(config.lambda_lr_ratio),
        "max_grad_norm": float(config.max_grad_norm),
        "adam_beta1": float(config.adam_beta1),
        "adam_beta2": float(config.adam_beta2),
        "adam_epsilon": float(config.adam_epsilon),
        "weight_decay": float(config.weight_decay),
    }


def _numbers_of_scale(rules: Rules | None) -> dict[str, float]:
    """Return the numbers of the rule for s, by flag; none without adapters."""
    if rules is None:
        return {}
    alpha, _, target_rank = rules.scaling
    return {"lora_alpha": float(alpha), "target_rank": float(target_rank)}

"""One training step as a pure function of (state, base, batch)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from increlora_jax.config import TrainingConfig
from increlora_jax.core.optimizer import Trainable, births, build_optimizer, mask_unborn
from increlora_jax.core.schedule import SHAPES, rate_at
from increlora_jax.methods.base import Evidence, Info, Method
from increlora_jax.nn.parts import Parts, Skeleton
from increlora_jax.training.state import TrainState

Batch = dict[str, Array]
Base = dict[str, Array]
Loss = Callable[[nnx.Module, Batch], tuple[Array, Array]]
"""(model, batch) → (sum of the losses [], sum of their weights [])."""


class Gradients(NamedTuple):
    """What the backward passes of one step leave behind."""

    loss: Array
    params: Trainable
    evidence: Evidence | None


class Trainer(NamedTuple):
    """The fixed parts of a run's step; everything that changes is in `TrainState`."""

    skeleton: Skeleton
    method: Method
    loss: Loss
    rate: Callable[[Array, Array], Array]
    optimizer: optax.GradientTransformationExtraArgs
    accumulation: int

    def init(self, parts: Parts, seed: int) -> TrainState:
        """The state before step 0, in buffers of its own: a step may be given them to overwrite."""
        params = Trainable(parts.adapters, parts.head)
        state = TrainState(
            jnp.zeros((), jnp.int32),
            jax.random.key(seed),
            params,
            parts.slots,
            self.method.init(parts),
            self.optimizer.init(params),
        )
        return jax.tree.map(jnp.copy, state)

    def step(
        self, state: TrainState, base: Base, batch: Batch, *, is_scored: bool
    ) -> tuple[TrainState, Info]:
        """Move one optimizer step; with accumulation, `batch` has a leading axis of micro-batches.

        A loss or gradient that is not finite leaves everything as it was; `info` says so.
        """
        key = jax.random.fold_in(state.key, state.step)
        forward_key, method_key = jax.random.split(key)
        gradients = self._gradients(state, base, batch, forward_key, is_scored)
        return self.apply(state, gradients, method_key)

    def apply(self, state: TrainState, gradients: Gradients, key: Array) -> tuple[TrainState, Info]:
        """Gradient in; regularizer, optimizer, score and growth done."""
        orth, pull = self._regularization(state)
        total = jax.tree.map(jnp.add, gradients.params, pull)
        born = births(state.params, state.slots)
        total = mask_unborn(total, born, state.step)
        norm = optax.tree.norm(total)
        # The method looks at the parameters the gradient was taken at. What it turns active now is
        # unborn to this step's optimizer, so neither stands in the other's way.
        updated = self.method.update(
            state.step, key, state.params.adapter, state.slots, state.method, gradients.evidence
        )
        params = state.params._replace(adapter=updated.adapters)
        updates, opt_state = self.optimizer.update(
            total, state.opt_state, params, step=state.step, born=born
        )
        params = optax.apply_updates(params, updates)
        new = TrainState(state.step + 1, state.key, params, updated.slots, updated.state, opt_state)
        is_finite = jnp.isfinite(gradients.loss + orth) & jnp.isfinite(norm)
        kept = jax.tree.map(lambda n, o: jnp.where(is_finite, n, o), new, state)
        info = {
            "loss": gradients.loss,
            "orth_loss": orth,
            "grad_norm": norm,
            "is_finite": is_finite,
            "total_rank": kept.total_rank,
            "learning_rate": self.rate(state.step, jnp.zeros((), jnp.int32)),
            **updated.info,
        }
        return kept, info

    def predict(self, state: TrainState, base: Base, call: Callable[[nnx.Module], Any]) -> Any:
        """What `call` makes of the whole model, without dropout."""
        return call(self.skeleton.assemble(self._parts(state.params, state, base)))

    def _parts(self, params: Trainable, state: TrainState, base: Base) -> Parts:
        return Parts(params.adapter, state.slots, params.head, base)

    def _gradients(
        self, state: TrainState, base: Base, batch: Batch, key: Array, is_scored: bool
    ) -> Gradients:
        probes = self._probes(state) if is_scored else {}

        def total(params: Trainable, probes: Evidence, batch: Batch, key: Array) -> Any:
            parts = self._parts(params, state, base)
            model = self.skeleton.assemble(parts, key, probes, self.method.score)
            return self.loss(model, batch)

        if self.accumulation == 1:
            loss, (params, evidence) = self._of_mean(total, state.params, probes, batch, key)
        else:
            loss, (params, evidence) = self._of_sums(total, state.params, probes, batch, key)
        return Gradients(loss, params, evidence if is_scored else None)

    def _probes(self, state: TrainState) -> Evidence:
        return self.method.probes(state.params.adapter, self.accumulation > 1)

    def _of_mean(
        self, total: Callable[..., Any], params: Trainable, probes: Evidence, batch: Batch, key: Any
    ) -> Any:
        def mean(params: Trainable, probes: Evidence) -> Array:
            loss, weight = total(params, probes, batch, key)
            return loss / weight

        return jax.value_and_grad(mean, argnums=(0, 1))(params, probes)

    def _of_sums(
        self, total: Callable[..., Any], params: Trainable, probes: Evidence, batch: Batch, key: Any
    ) -> Any:
        """Add up micro-batches and divide once: the mean over the whole batch, exactly."""
        differentiate = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)

        def add(sums: Any, micro: Any) -> tuple[Any, None]:
            (loss, weight), gradients = differentiate(params, probes, *micro)
            return jax.tree.map(jnp.add, sums, (loss, weight, gradients)), None

        keys = jax.random.split(key, self.accumulation)
        first = jax.tree.map(lambda leaf: leaf[0], (batch, keys))
        shapes = jax.eval_shape(lambda: differentiate(params, probes, *first))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (loss, weight), gradients = zeros
        sums, _ = jax.lax.scan(add, (loss, weight, gradients), (batch, keys))
        loss, weight, gradients = sums
        return loss / weight, jax.tree.map(lambda g: g / weight.astype(g.dtype), gradients)

    def _regularization(self, state: TrainState) -> tuple[Array, Trainable]:
        """The regularizer's value and the gradient of its weighted form; the head has no part."""

        def weighted(adapters: Any) -> tuple[Array, Array]:
            value = self.method.regularize(adapters, state.slots)
            return self.method.regularization * value, value

        (_, value), pull = jax.value_and_grad(weighted, has_aux=True)(state.params.adapter)
        return value, Trainable(pull, jax.tree.map(jnp.zeros_like, state.params.head))


def build_trainer(
    skeleton: Skeleton,
    method: Method,
    loss: Loss,
    config: TrainingConfig,
    *,
    total_steps: int,
    restart_warmup: bool = True,
    dtype: Any = jnp.float32,
) -> Trainer:
    """Put optimizer and schedule of a configuration together with model, method and loss."""

    def rate(step: Array, born: Array) -> Array:
        return rate_at(
            step,
            born,
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup_steps,
            total_steps=total_steps,
            restart_warmup=restart_warmup,
            shape=SHAPES[config.lr_scheduler_type],
            dtype=dtype,
        )

    optimizer = build_optimizer(
        rate,
        max_grad_norm=config.max_grad_norm,
        b1=config.adam_beta1,
        b2=config.adam_beta2,
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )
    return Trainer(skeleton, method, loss, rate, optimizer, config.gradient_accumulation_steps)

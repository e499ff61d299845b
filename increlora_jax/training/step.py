"""One training step as a pure function of (state, base, batch)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array

from increlora_jax.config import VARIABLE, TrainingConfig
from increlora_jax.core.optimizer import Trainable, births, build_optimizer, mask_unborn
from increlora_jax.core.pace import choose_warmup
from increlora_jax.core.schedule import SHAPES, Number, rate_at
from increlora_jax.core.stacking import Groups, by_name, is_stacked
from increlora_jax.errors import InputError
from increlora_jax.methods.base import Evidence, Info, Method, Observation, Settings
from increlora_jax.nn.rules import Rules, make_rules
from increlora_jax.nn.skeleton import Parts, Skeleton
from increlora_jax.training.state import TrainState

Batch = dict[str, Array]
Base = dict[str, Array]
Loss = Callable[[Any, Batch], tuple[Array, Array]]
"""(model, batch) → (sum of the losses [], sum of their weights [])."""

Rate = Callable[[Settings, Array, Array], Array]
"""(settings, step [], step of birth [...]) → learning rate [...]."""


class Gradients(NamedTuple):
    """The gradients of one step, and what its method reads of them.

    Those of several micro-batches may be averaged like arrays where the configuration's
    `gradient_accumulation_steps` is above 1: their evidence is then dense, and scored as a whole.
    """

    loss: Array
    params: Trainable
    evidence: Evidence | None
    # After the forward pass; nothing changes the default.
    statistics: dict[str, Array] = {}  # noqa: RUF012


def no_loss(model: Any, batch: Any) -> Any:
    """The loss of a trainer whose user differentiates one of his own."""
    raise InputError(
        "this trainer was made without a loss, which its `step` needs: give prepare(…, loss=…), "
        "or call value_and_grad(loss) and update"
    )


class Trainer(NamedTuple):
    """The fixed parts of a run's step; everything that changes is in `TrainState`.

    `settings` are the numbers of its configuration, by flag. A state holds them as arrays, so that
    a step's program has no constants of them: runs that differ in numbers share one program.
    """

    skeleton: Skeleton
    method: Method
    loss: Loss
    rate: Rate
    optimizer: Callable[[Settings], optax.GradientTransformationExtraArgs]
    accumulation: int
    settings: Mapping[str, int | float]
    dtype: DTypeLike

    def init(self, parts: Parts, seed: int, settings: Settings | None = None) -> TrainState:
        """The state before step 0, in buffers of its own: a step may be given them to overwrite.

        `settings` are those of `config.VARIABLE` that are to have another value in this state.
        """
        _check_variable(settings or {})
        numbers = {**self.settings, **(settings or {})}
        params = Trainable(parts.adapters, parts.head)
        state = TrainState(
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            jax.random.key(seed),
            params,
            parts.slots,
            self.method.init(parts),
            self.optimizer(self.settings).init(params),
            {name: self._as_array(name, value) for name, value in numbers.items()},
            parts.statistics,
        )
        return jax.tree.map(jnp.copy, state)

    def step(
        self, state: TrainState, base: Base, batch: Batch, *, is_scored: bool
    ) -> tuple[TrainState, Info]:
        """Move one optimizer step; with accumulation, `batch` has a leading axis of micro-batches.

        A loss, gradient or score that is not finite changes nothing but the count of such steps.
        """
        if self.accumulation > 1:
            return self.update(state, self._of_sums(state, base, batch, is_scored))

        def mean(model: Any, batch: Batch) -> Array:
            loss, weight = self.loss(model, batch)
            return loss / weight

        _, gradients = self.value_and_grad(mean)(state, base, batch, is_scored=is_scored)
        return self.update(state, gradients)

    def value_and_grad(self, loss: Callable[..., Any], *, has_aux: bool = False) -> Any:
        """Differentiate `loss(model, *args)` [] as `jax.value_and_grad` does, dropout on.

        The function returned takes `(state, base, *args)` and gives the loss, or (loss, aux), and
        the `Gradients` that `update` wants. `is_scored=False` saves the score of a step where
        `method.is_scored` says that it is not wanted.
        """

        def differentiate(state: TrainState, base: Base, *args: Any, is_scored: bool = True) -> Any:
            key, _ = _step_keys(state)

            def of_whole_model(params: Trainable, probes: Evidence) -> Any:
                moved = state._replace(params=params)
                result, statistics = self._call(loss, moved, base, key, probes, *args)
                mean, aux = result if has_aux else (result, None)
                return mean, (aux, statistics)

            (mean, (aux, statistics)), (params, evidence) = jax.value_and_grad(
                of_whole_model, argnums=(0, 1), has_aux=True
            )(state.params, self._probes(state, is_scored))
            gradients = Gradients(mean, params, evidence if is_scored else None, statistics)
            return (mean, aux) if has_aux else mean, gradients

        return differentiate

    def update(self, state: TrainState, gradients: Gradients) -> tuple[TrainState, Info]:
        """Gradient in; regularizer, optimizer, score and growth done."""
        if is_stacked(state.params.adapter):
            return self._update(state, gradients)
        groups = Groups(state.params.adapter)
        new, info = self._update(*groups.stack((state, gradients)))
        return groups.unstack(new), info

    def _update(self, state: TrainState, gradients: Gradients) -> tuple[TrainState, Info]:
        """Update a state whose modules are stacked."""
        key, settings = _step_keys(state)[1], state.settings
        orth, pull = self._regularization(state)
        total = jax.tree.map(jnp.add, gradients.params, pull)
        born = births(state.params, state.slots)
        total = mask_unborn(total, born, state.step)
        norm = optax.tree.norm(total)
        when = {"step": state.step, "born": born}
        updates, opt_state = self.optimizer(settings).update(
            total, state.opt_state, state.params, **when
        )
        moved = optax.apply_updates(state.params, updates)
        # The method comes last, so that a slot that it prunes or opens is not moved after that.
        updated = self.method.update(_observe(state, key, moved, gradients))
        new = state._replace(
            step=state.step + 1,
            params=moved._replace(adapter=updated.adapters),
            slots=updated.slots,
            method=updated.state,
            opt_state=opt_state,
            statistics=_carry(gradients.statistics, state.statistics),
        )
        is_finite = _is_finite((gradients.loss, orth, norm, updated.state, new.statistics))
        passed_over = state._replace(skipped=state.skipped + 1)
        kept = jax.tree.map(lambda n, o: jnp.where(is_finite, n, o), new, passed_over)
        info = {
            "loss": gradients.loss,
            "orth_loss": orth,
            "grad_norm": norm,
            "is_finite": is_finite,
            "total_rank": kept.total_rank,
            "learning_rate": self.rate(settings, state.step, jnp.zeros((), jnp.int32)),
            **updated.info,
        }
        return kept, info

    def predict(self, state: TrainState, base: Base, call: Callable[[Any], Any]) -> Any:
        """Return `call` of the whole model, without dropout."""
        return call(self.skeleton.assemble(self.parts(state, base)))

    def parts(self, state: TrainState, base: Base) -> Parts:
        """The model of a state taken apart, as reports and files want it."""
        params, rules = state.params, self.skeleton.rules
        scales = {}
        if rules is not None:
            scaling = rules.scaling.given(state.settings)
            rules = make_rules(scaling, dict(rules.axes))
            scales = {
                key: scaling(slots.rank, params.adapter[key].lam.dtype)
                for key, slots in state.slots.items()
            }
        adapters, slots = by_name(params.adapter), by_name(state.slots)
        return Parts(adapters, slots, params.head, base, state.statistics, rules, by_name(scales))

    def merge(self, state: TrainState, base: Base) -> Any:
        """The user's own kind of model, without adapters, every update in its kernel."""
        return self.skeleton.merge(self.parts(state, base))

    def _as_array(self, name: str, value: Number) -> Array:
        """Return a setting as a state holds it."""
        is_whole = isinstance(self.settings.get(name, 0.0), int)
        return jnp.asarray(value, jnp.int32 if is_whole else self.dtype)

    def _call(
        self,
        loss: Callable[..., Any],
        state: TrainState,
        base: Base,
        key: Array,
        probes: Evidence,
        *args: Any,
    ) -> tuple[Any, dict[str, Array]]:
        """Call a loss with the model of a state, for training; returns the statistics beside."""
        parts, skeleton = self.parts(state, base), self.skeleton
        model = skeleton.assemble(parts, key, by_name(probes), self.method.score)
        before = skeleton.snapshot(model)
        return loss(model, *args), skeleton.read_statistics(model, parts, before)

    def _probes(self, state: TrainState, is_scored: bool) -> Evidence:
        return self.method.probes(state.params.adapter, self.accumulation > 1) if is_scored else {}

    def _of_sums(self, state: TrainState, base: Base, batch: Batch, is_scored: bool) -> Gradients:
        """Add up micro-batches and divide once: the mean over the whole batch, exactly."""
        key, _ = _step_keys(state)
        keys = jax.random.split(key, self.accumulation)
        probes = self._probes(state, is_scored)

        def total(
            params: Trainable, probes: Evidence, statistics: Any, batch: Batch, key: Array
        ) -> Any:
            moved = state._replace(params=params, statistics=statistics)
            (loss, weight), after = self._call(self.loss, moved, base, key, probes, batch)
            return loss, (weight, after)

        differentiate = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)

        def add(carried: Any, micro: Any) -> tuple[Any, None]:
            sums, before = carried
            (loss, (weight, after)), gradients = differentiate(state.params, probes, before, *micro)
            return (jax.tree.map(jnp.add, sums, (loss, weight, gradients)), after), None

        first = jax.tree.map(lambda leaf: leaf[0], (batch, keys))
        start = state.statistics
        shapes = jax.eval_shape(lambda: differentiate(state.params, probes, start, *first))
        (loss, (weight, _)), gradients = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (sums, statistics), _ = jax.lax.scan(add, ((loss, weight, gradients), start), (batch, keys))
        loss, weight, gradients = sums
        params, evidence = jax.tree.map(lambda g: g / weight.astype(g.dtype), gradients)
        return Gradients(loss / weight, params, evidence if is_scored else None, statistics)

    def _regularization(self, state: TrainState) -> tuple[Array, Trainable]:
        """The regularizer's value and the gradient of its weighted form; the head has no part."""

        def weighted(adapters: Any) -> tuple[Array, Array]:
            value = self.method.regularize(adapters, state.slots)
            return state.settings["reg_orth_coef"] * value, value

        (_, value), pull = jax.value_and_grad(weighted, has_aux=True)(state.params.adapter)
        return value, Trainable(pull, jax.tree.map(jnp.zeros_like, state.params.head))


def _carry(after: dict[str, Array], before: dict[str, Array]) -> dict[str, Array]:
    """Take the statistics of the forward pass; averaged ones of micro-batches in their dtype."""
    return {name: after.get(name, value).astype(value.dtype) for name, value in before.items()}


def _observe(state: TrainState, key: Array, moved: Trainable, gradients: Gradients) -> Observation:
    """Return what a method is given of a step."""
    return Observation(
        step=state.step,
        key=key,
        adapters=state.params.adapter,
        moved=moved.adapter,
        slots=state.slots,
        state=state.method,
        gradients=gradients.params.adapter,
        evidence=gradients.evidence,
        settings=state.settings,
    )


def _step_keys(state: TrainState) -> tuple[Array, Array]:
    """The keys of a step: of its forward pass, and of its method."""
    own = jax.random.fold_in(state.key, state.step + state.skipped)
    forward, method = jax.random.split(own)
    return forward, method


def _check_variable(settings: Settings) -> None:
    if wrong := sorted(settings.keys() - set(VARIABLE)):
        raise InputError(
            f"{wrong[0]} cannot differ between states of one trainer; what can is "
            f"{', '.join(VARIABLE)}"
        )


def _is_finite(values: Any) -> Array:
    """Return whether all numbers of a tree are finite []."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(values)]).all()


def build_trainer(
    skeleton: Skeleton,
    method: Method,
    loss: Loss,
    config: TrainingConfig,
    *,
    total_steps: int,
    dtype: Any = jnp.float32,
) -> Trainer:
    """Put optimizer and schedule of a configuration together with model, method and loss."""

    def rate(settings: Settings, step: Array, born: Array) -> Array:
        return rate_at(
            step,
            born,
            learning_rate=settings["learning_rate"],
            warmup_steps=settings["warmup_steps"],
            total_steps=settings["total_steps"],
            restart_warmup=method.restart_warmup,
            shape=SHAPES[config.lr_scheduler_type],
            dtype=dtype,
        )

    settings = {
        **_numbers_of(config, total_steps),
        **_numbers_of_scale(skeleton.rules),
        "reg_orth_coef": float(method.regularization),
        **method.settings,
    }
    accumulation = config.gradient_accumulation_steps
    optimizer = partial(_optimizer_of, rate)
    return Trainer(skeleton, method, loss, rate, optimizer, accumulation, settings, dtype)


def _optimizer_of(rate: Rate, settings: Settings) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer of a state's settings."""
    return build_optimizer(
        partial(rate, settings),
        max_grad_norm=settings["max_grad_norm"],
        b1=settings["adam_beta1"],
        b2=settings["adam_beta2"],
        eps=settings["adam_epsilon"],
        weight_decay=settings["weight_decay"],
    )


def _numbers_of(config: TrainingConfig, total_steps: int) -> dict[str, int | float]:
    """Return the numbers of schedule and optimizer, by flag."""
    return {
        "learning_rate": float(config.learning_rate),
        "warmup_steps": choose_warmup(config.warmup_steps, total_steps),
        "total_steps": int(total_steps),
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

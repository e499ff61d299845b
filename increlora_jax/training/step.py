"""One training step as a pure function of (state, base, batch)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from increlora_jax.config import VARIABLE
from increlora_jax.core.adapter import NEVER, Slots
from increlora_jax.core.meshes import on_any_mesh
from increlora_jax.core.optimizer import Trainable, births, mask_unborn
from increlora_jax.core.schedule import Number
from increlora_jax.core.stacking import Groups, by_name, is_stacked
from increlora_jax.errors import InputError
from increlora_jax.methods.base import Adapters, Info, Method, Observation, Probes, Settings
from increlora_jax.nn.rules import make_rules
from increlora_jax.nn.skeleton import Parts, Skeleton
from increlora_jax.training.state import TrainState

Batch = dict[str, Array]
Base = dict[str, Any]
"""Frozen arrays by path; abstract ones for a trainer that only updates."""
Statistics = dict[str, Array]
Loss = Callable[[PyTree, Batch], tuple[Array, Array]]
"""(model, batch) → (sum of the losses [], sum of their weights [])."""

Rate = Callable[[Settings, Array, Array], Array]
"""(settings, step [], step of birth [...]) → learning rate [...]."""

T = TypeVar("T")


class Gradients(NamedTuple):
    """The gradients of one step, as `Trainer.value_and_grad` returns them.

    If `gradient_accumulation_steps` is above 1, the gradients of micro-batches may be averaged like
    arrays. Their evidence is dense then, and `Trainer.update` scores its mean.

    Attributes:
        loss: the mean loss [].
        params: ∂L/∂parameter of everything trainable.
        evidence: the cotangents of the method's probes; None on a step that is not scored.
        statistics: the values that the forward pass wrote, by path; default: none.

    >>> import jax, increlora_jax as il, jax.numpy as jnp
    >>> params = {"w": jnp.ones((4, 4))}
    >>> trainer, state, base = il.prepare(params, il.lora(params), total_steps=10)
    >>> differentiate = trainer.value_and_grad(lambda model, x: jnp.sum(x @ model["w"]))
    >>> loss, gradients = jax.eval_shape(differentiate, state, base, jnp.ones((2, 4)))
    >>> isinstance(gradients, il.Gradients), gradients.params.adapter["w"].A.shape
    (True, (4, 2))
    """

    loss: Array
    params: Trainable
    evidence: Probes | None
    # After the forward pass; nothing changes the default.
    statistics: dict[str, Array] = {}  # noqa: RUF012


def no_loss(model: PyTree, batch: Batch) -> tuple[Array, Array]:
    """Refuse a step: the trainer has no loss of its own.

    Raises:
        InputError: always.
    """
    raise InputError(
        "Trainer.step: the trainer was made without a loss. Give prepare(…, loss=…), or call "
        "value_and_grad(loss) and update"
    )


class Trainer(NamedTuple):
    """The fixed parts of a run's step; everything that changes is in `TrainState`.

    A state may hold its modules by name or in stacks (`core.stacking`). A step keeps that form.

    Attributes:
        skeleton: the model without its arrays.
        method: the way of fine-tuning.
        loss: (model, batch) → (sum of the losses [], sum of their weights []).
        rate: (settings, step [], step of birth [...]) → learning rate [...]; None if the optimizer
            is the user's own.
        optimizer: settings → the optimizer.
        accumulation: micro-batches of an optimizer step.
        settings: the numbers of the configuration, by flag. A state holds them as arrays, so that
            no program has a constant of them: runs that differ in numbers share their programs.
        dtype: of the settings that are not whole, and of learning rates.

    >>> import jax, increlora_jax as il, jax.numpy as jnp
    >>> params = {"w": jnp.ones((4, 4))}
    >>> trainer, state, base = il.prepare(params, il.lora(params), total_steps=10)
    >>> differentiate = trainer.value_and_grad(lambda model, x: jnp.sum(x @ model["w"]))
    >>> _, gradients = jax.eval_shape(differentiate, state, base, jnp.ones((2, 4)))
    >>> state, info = jax.eval_shape(trainer.update, state, gradients)
    >>> sorted(info)[:3]
    ['grad_norm', 'is_finite', 'learning_rate']
    """

    skeleton: Skeleton
    method: Method
    loss: Loss
    rate: Rate | None
    optimizer: Callable[[Settings], optax.GradientTransformationExtraArgs]
    accumulation: int
    settings: Mapping[str, int | float]
    dtype: DTypeLike

    def init(self, parts: Parts, seed: int, settings: Settings | None = None) -> TrainState:
        """Return the state before step 0, in buffers of its own, which a step may be donated.

        Slots that were born in an earlier run are born at step 0.

        Args:
            parts: the arrays of the model.
            seed: of dropout and the method's random numbers.
            settings: numbers of this state that differ from the trainer's, of `config.VARIABLE`;
                default: none.

        Raises:
            InputError: a setting that cannot differ between states.
        """
        _check_variable(settings or {})
        numbers = {**self.settings, **(settings or {})}
        params = Trainable(parts.adapters, parts.head)
        state = TrainState(
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            jax.random.key(seed),
            params,
            {name: _born_at_start(own) for name, own in parts.slots.items()},
            self.method.init(parts),
            self.optimizer(self.settings).init(params),
            {name: self._as_array(name, value) for name, value in numbers.items()},
            parts.statistics,
        )
        return jax.tree.map(jnp.copy, state)

    def step(
        self, state: TrainState, base: Base, batch: Batch, *, is_scored: bool
    ) -> tuple[TrainState, Info]:
        """Return the state after one optimizer step, and the step's info.

        If the loss, a gradient or a score is not finite, only the count of skipped steps changes.

        Args:
            state: the state before the step.
            base: the frozen weights by path.
            batch: the arrays of the loss. With accumulation, a leading axis is of micro-batches.
            is_scored: whether modules are scored; see `Method.is_scored`.
        """
        if self.accumulation > 1:
            return self.update(state, self._of_sums(state, base, batch, is_scored))

        def mean(model: PyTree, batch: Batch) -> Array:
            loss, weight = self.loss(model, batch)
            return loss / weight

        _, gradients = self.value_and_grad(mean)(state, base, batch, is_scored=is_scored)
        return self.update(state, gradients)

    def value_and_grad(
        self, loss: Callable[..., PyTree], *, has_aux: bool = False
    ) -> Callable[..., tuple[PyTree, Gradients]]:
        """Differentiate `loss(model, *args)` [] as `jax.value_and_grad` does, with dropout.

        The result takes `(state, base, *args)`. It returns the loss, or (loss, aux), and the
        `Gradients` for `update`. If `method.is_scored` is false for a step, `is_scored=False` saves
        the cost of its score.
        """

        def differentiate(
            state: TrainState, base: Base, *args: PyTree, is_scored: bool = True
        ) -> tuple[PyTree, Gradients]:
            key, _ = _step_keys(state)

            def of_whole_model(
                params: Trainable, probes: Probes
            ) -> tuple[Array, tuple[PyTree, Statistics]]:
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
        """Apply regularizer, optimizer and method; return the new state and the step's info.

        The info has `loss`, `orth_loss` (the regularizer), `grad_norm` (before clipping),
        `is_finite`, `total_rank` and `learning_rate`, each []. A method adds its own: IncreLoRA
        `rank` and, of a scored step, `importance`, `sensitivity` and `uncertainty` [modules], in
        the order of `trainer.skeleton.modules`.
        """
        return on_any_mesh(self._update, state, gradients, like=(state, state.step))

    def _update(self, state: TrainState, gradients: Gradients) -> tuple[TrainState, Info]:
        if is_stacked(state.params.adapter):
            return self._update_stacks(state, gradients)
        groups = Groups(state.params.adapter)
        new, info = self._update_stacks(*groups.stack((state, gradients)))
        return state.placement.keep(groups.unstack(new)), info

    def _update_stacks(self, state: TrainState, gradients: Gradients) -> tuple[TrainState, Info]:
        """Update a state whose modules are stacked."""
        key, settings = _step_keys(state)[1], state.settings
        orth, pull = self._regularization(state)
        total = jax.tree.map(jnp.add, gradients.params, pull)
        born = births(state.params, state.slots)
        total = mask_unborn(total, born, state.step)
        norm = optax.tree.norm(total)
        when = {"step": state.step, "born": born, "value": gradients.loss}
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
        # AdamW's updates are finite if its gradients are; those of a user's own may not be.
        of_own = () if self.rate is not None else optax.tree.norm(updates)
        is_finite = _is_finite((gradients.loss, orth, norm, of_own, updated.state, new.statistics))
        passed_over = state._replace(skipped=state.skipped + 1)
        kept = jax.tree.map(lambda n, o: jnp.where(is_finite, n, o), new, passed_over)
        info = {
            "loss": gradients.loss,
            "orth_loss": orth,
            "grad_norm": norm,
            "is_finite": is_finite,
            "total_rank": kept.total_rank,
            **updated.info,
        }
        if self.rate is not None:
            info["learning_rate"] = self.rate(settings, state.step, jnp.zeros((), jnp.int32))
        return kept, info

    def predict(self, state: TrainState, base: Base, call: Callable[[PyTree], T]) -> T:
        """Return `call` of the whole model, without dropout."""
        return call(self.skeleton.assemble(self.parts(state, base)))

    def parts(self, state: TrainState, base: Base) -> Parts:
        """Return the model of a state taken apart, for reports and files."""
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

    def merge(self, state: TrainState, base: Base) -> PyTree:
        """Return a plain model of the user's kind, with every update added to its kernel."""
        return self.skeleton.merge(self.parts(state, base))

    def _as_array(self, name: str, value: Number) -> Array:
        """Return a setting as a state holds it."""
        is_whole = isinstance(self.settings.get(name, 0.0), int)
        return jnp.asarray(value, jnp.int32 if is_whole else self.dtype)

    def _call(
        self,
        loss: Callable[..., T],
        state: TrainState,
        base: Base,
        key: Array,
        probes: Probes,
        *args: PyTree,
    ) -> tuple[T, Statistics]:
        """Call a loss with the model of a state, for training; also return its statistics."""
        parts, skeleton = self.parts(state, base), self.skeleton
        model = skeleton.assemble(parts, key, by_name(probes))
        before = skeleton.snapshot(model)
        return loss(model, *args), skeleton.read_statistics(model, parts, before)

    def _probes(self, state: TrainState, is_scored: bool) -> Probes:
        return self.method.probes(state.params.adapter, self.accumulation > 1) if is_scored else {}

    def _of_sums(self, state: TrainState, base: Base, batch: Batch, is_scored: bool) -> Gradients:
        """Return the gradients of the mean over all micro-batches: sums, divided once."""
        key, _ = _step_keys(state)
        keys = jax.random.split(key, self.accumulation)
        probes = self._probes(state, is_scored)

        def total(
            params: Trainable, probes: Probes, statistics: Statistics, batch: Batch, key: Array
        ) -> tuple[Array, tuple[Array, Statistics]]:
            moved = state._replace(params=params, statistics=statistics)
            (loss, weight), after = self._call(self.loss, moved, base, key, probes, batch)
            return loss, (weight, after)

        differentiate = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)

        def add(carried: PyTree, micro: PyTree) -> tuple[PyTree, None]:
            sums, before = carried
            (loss, (weight, after)), gradients = differentiate(state.params, probes, before, *micro)
            return (jax.tree.map(jnp.add, sums, (loss, weight, gradients)), after), None

        first = jax.tree.map(lambda leaf: leaf[0], (batch, keys))
        start = state.statistics
        shapes = jax.eval_shape(lambda: differentiate(state.params, probes, start, *first))
        (loss, (weight, _)), gradients = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), shapes
        )
        (sums, statistics), _ = jax.lax.scan(add, ((loss, weight, gradients), start), (batch, keys))
        loss, weight, gradients = sums
        params, evidence = jax.tree.map(lambda g: g / weight.astype(g.dtype), gradients)
        return Gradients(loss / weight, params, evidence if is_scored else None, statistics)

    def _regularization(self, state: TrainState) -> tuple[Array, Trainable]:
        """Return the regularizer's value [] and its weighted gradient, 0 for the head."""

        def weighted(adapters: Adapters) -> tuple[Array, Array]:
            value = self.method.regularize(adapters, state.slots)
            return state.settings["reg_orth_coef"] * value, value

        (_, value), pull = jax.value_and_grad(weighted, has_aux=True)(state.params.adapter)
        return value, Trainable(pull, jax.tree.map(jnp.zeros_like, state.params.head))


def _born_at_start(slots: Slots) -> Slots:
    """Return slots whose births are step 0 or never."""

    def begin(born: Array) -> Array:
        return jnp.where(born == NEVER, born, jnp.zeros_like(born))

    return slots._replace(
        lambda_born=begin(slots.lambda_born), matrix_born=begin(slots.matrix_born)
    )


def _carry(after: dict[str, Array], before: dict[str, Array]) -> dict[str, Array]:
    """Return the statistics after a forward pass, in the dtypes that they had before."""
    return {name: after.get(name, value).astype(value.dtype) for name, value in before.items()}


def _observe(state: TrainState, key: Array, moved: Trainable, gradients: Gradients) -> Observation:
    """Return the observation that a method updates from."""
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
    """Return the random keys of a step: of its forward pass, and of its method."""
    own = jax.random.fold_in(state.key, state.step + state.skipped)
    forward, method = jax.random.split(own)
    return forward, method


def _check_variable(settings: Settings) -> None:
    if wrong := sorted(settings.keys() - set(VARIABLE)):
        raise InputError(
            f"{wrong[0]} cannot differ between states of one trainer. Choose from "
            f"{', '.join(VARIABLE)}"
        )


def _is_finite(values: PyTree) -> Array:
    """Return whether all numbers of a tree are finite []."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(values)]).all()

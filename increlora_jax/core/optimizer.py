"""AdamW in which every slot has its own age, beside stock optax for the rest."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from increlora_jax.core.adapter import Adapter, Slots
from increlora_jax.core.schedule import Number, as_dtype

Tree = TypeVar("Tree")


class Trainable(NamedTuple):
    """Parameters that the optimizer moves: adapters by module or group, others by path."""

    adapter: dict[Any, Adapter]  # Any: the name of a module, or a `core.stacking.Group`
    head: dict[str, Array]


LABELS = Trainable(adapter="adapter", head="head")  # type: ignore[arg-type]  # a prefix tree


class SlotAdamState(NamedTuple):
    """Two moments of every parameter; the count of a slot is its age."""

    mu: PyTree[Array]
    nu: PyTree[Array]


def births(params: Trainable, slots: Mapping[Any, Slots]) -> Trainable:
    """Return the step of birth of every entry of `params`, shaped to broadcast to its leaf."""
    adapter = {name: _adapter_births(slots[name]) for name in params.adapter}
    return Trainable(adapter, {path: jnp.zeros((), jnp.int32) for path in params.head})


def _adapter_births(slots: Slots) -> Adapter:
    return Adapter(
        A=slots.matrix_born[..., None, :], lam=slots.lambda_born, B=slots.matrix_born[..., :, None]
    )


def mask_unborn(gradients: Tree, born: PyTree, step: Int[Array, ""]) -> Tree:
    """Zero the gradients of unborn entries, so that the global norm leaves them out."""
    return jax.tree.map(lambda g, b: jnp.where(step >= b, g, 0.0), gradients, born)


CLIP_EPSILON = 1e-6
"""PyTorch's clip divides by norm + 1e-6 (reference trace); optax's does not, and it shows."""


def clip_by_global_norm(max_norm: Number) -> optax.GradientTransformation:
    """Make g ← g · min(1, max_norm / (‖g‖ + 1e-6)), over all that is trainable."""

    def update(
        updates: PyTree, state: optax.EmptyState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.EmptyState]:
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + CLIP_EPSILON))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class RateRatios(NamedTuple):
    """Learning rates of an adapter's arrays over that of A.

    Attributes:
        lam: of λ; default: 1.
        B: of B, as LoRA+ has it (arXiv 2402.12354); default: 1.
    """

    lam: Number = 1.0
    B: Number = 1.0


def slot_adamw(
    rate: Callable[[Array, Array], Array],
    *,
    ratios: RateRatios = RateRatios(),
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Make AdamW whose bias correction and learning rate count from each entry's birth b.

    Its `update` takes two extra arguments: `step` t [], and `born`, a tree like the parameters'.

    Args:
        rate: (step t [], births b of a leaf) → the learning rate of every entry.
        ratios: the rates of λ and B over that of A; default: 1.
        b1: β₁; default: 0.9.
        b2: β₂; default: 0.999.
        eps: ε; default: 1e-8.
        weight_decay: the decay; default: 0.
    """
    rule = _SlotRule(rate, ratios, b1, b2, eps, weight_decay)
    return optax.GradientTransformationExtraArgs(rule.init, rule.update)


class _SlotRule(NamedTuple):
    """AdamW with age k = t − b + 1: m̂ = m/(1 − β₁ᵏ), v̂ = v/(1 − β₂ᵏ).

    Δp = −ratio · rate(t, b) · (m̂/(√v̂ + ε) + decay · p), with the ratio of the array. Before birth:
    no moments, no decay, Δp = 0. An entry that is born again begins with new moments.
    """

    rate: Callable[[Array, Array], Array]
    ratios: RateRatios
    b1: Number
    b2: Number
    eps: Number
    weight_decay: Number

    def init(self, params: PyTree) -> SlotAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return SlotAdamState(zeros, zeros)

    def update(
        self,
        updates: PyTree,
        state: SlotAdamState,
        params: PyTree = None,
        *,
        step: Array,
        born: PyTree,
        **_: PyTree,
    ) -> tuple[PyTree, SlotAdamState]:
        gradients = mask_unborn(updates, born, step)
        old_mu, old_nu = (mask_unborn(old, born, step - 1) for old in state)
        mu = jax.tree.map(partial(_average, self.b1), old_mu, gradients)
        nu = jax.tree.map(lambda v, g: _average(self.b2, v, g * g), old_nu, gradients)
        move = partial(self._move, step)
        moves = jax.tree.map(move, mu, nu, born, params, _ratios_of(self.ratios, params))
        return moves, SlotAdamState(mu, nu)

    def _move(self, step: Array, m: Array, v: Array, b: Array, p: Array, ratio: Array) -> Array:
        # An unborn entry has rate 0; age 1 only keeps its bias correction finite.
        age = jnp.where(step >= b, step - b + 1, 1).astype(p.dtype)
        direction = _unbiased(self.b1, m, age) / (
            jnp.sqrt(_unbiased(self.b2, v, age)) + as_dtype(self.eps, p.dtype)
        )
        decay = as_dtype(self.weight_decay, p.dtype) * p
        rate = self.rate(step, b).astype(p.dtype) * ratio.astype(p.dtype)
        return -rate * (direction + decay)


def move_by_rate(
    rate: Callable[[Array, Array], Array], ratios: RateRatios, weight_decay: Number
) -> optax.GradientTransformationExtraArgs:
    """Make Δp = −ratio · rate(t, b) · (u + decay · p) of directions u; 0 before birth b."""

    def update(
        updates: PyTree,
        state: optax.EmptyState,
        params: PyTree = None,
        *,
        step: Array,
        born: PyTree,
        **_: PyTree,
    ) -> tuple[PyTree, optax.EmptyState]:
        def move(u: Array, b: Array, p: Array, ratio: Array) -> Array:
            own = rate(step, b).astype(p.dtype) * ratio.astype(p.dtype)
            return -own * (u + as_dtype(weight_decay, p.dtype) * p)

        return jax.tree.map(move, updates, born, params, _ratios_of(ratios, params)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _ratios_of(ratios: RateRatios, params: PyTree) -> PyTree[Array]:
    """Return the ratio of every leaf; of a leaf outside of adapters it is 1."""
    of_adapter = Adapter(*map(jnp.asarray, (1.0, ratios.lam, ratios.B)))

    def of_node(node: PyTree) -> PyTree[Array]:
        return of_adapter if isinstance(node, Adapter) else of_adapter.A

    return jax.tree.map(of_node, params, is_leaf=lambda node: isinstance(node, Adapter))


def _average(decay: Number, average: Array, new: Array) -> Array:
    """Return β · average + (1 − β) · new."""
    decay = as_dtype(decay, average.dtype)
    return decay * average + (1 - decay) * new


def _unbiased(decay: Number, average: Array, age: Array) -> Array:
    """Return an average over `age` steps without the bias of its start at 0."""
    return average / (1 - as_dtype(decay, average.dtype) ** age)


def head_adamw(
    rate: Callable[[Array, Array], Array], **numbers: Number
) -> optax.GradientTransformation:
    """Make optax's AdamW for leaves born at step 0, with its numbers in their dtype."""

    def rule(params: PyTree) -> optax.GradientTransformation:
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        own = {name: as_dtype(number, dtype) for name, number in numbers.items()}
        return optax.adamw(lambda count: rate(count, jnp.zeros((), jnp.int32)), **own)

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        return rule(params).update(updates, state, params)

    return optax.GradientTransformation(lambda params: rule(params).init(params), update)


def build_optimizer(
    rate: Callable[[Array, Array], Array],
    *,
    max_grad_norm: Number,
    ratios: RateRatios = RateRatios(),
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Make the optimizer: clipping by the global norm, then AdamW by label.

    Args:
        rate: (step t [], births b of a leaf) → the learning rate of every entry.
        max_grad_norm: the norm of all gradients together at most.
        ratios: the rates of λ and B over that of A; default: 1.
        b1: β₁; default: 0.9.
        b2: β₂; default: 0.999.
        eps: ε; default: 1e-8.
        weight_decay: default: 0.

    Returns:
        A transformation of `Trainable`: `slot_adamw` for adapters, optax's AdamW for the head. Its
        `update` takes the extra arguments `step` and `born` (see `births`).
    """
    adam = {"b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}

    return optax.chain(
        clip_by_global_norm(max_grad_norm),
        optax.multi_transform(
            {"adapter": slot_adamw(rate, ratios=ratios, **adam), "head": head_adamw(rate, **adam)},
            LABELS,
            mask_compatible_extra_args=True,
        ),
    )

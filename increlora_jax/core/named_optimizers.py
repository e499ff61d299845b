"""Optimizers by name whose learning rate counts from every slot's birth."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from jaxtyping import Array

from increlora_jax.core.adapter import Adapter
from increlora_jax.core.optimizer import (
    LABELS,
    RateRatios,
    Trainable,
    build_optimizer,
    clip_by_global_norm,
    move_by_rate,
)
from increlora_jax.core.schedule import Number
from increlora_jax.core.slotwise import matrixwise, slotwise

BLOCK_RMS = 1.0
"""Root mean square of one matrix's update at most, in Adafactor (arXiv 1804.04235)."""

MOMENTUM = 0.95
"""Decay of Muon's momentum, as published."""


class Betas(NamedTuple):
    """Numbers of averages: β₁, β₂ and ε."""

    b1: Number
    b2: Number
    eps: Number


class Direction(NamedTuple):
    """Transformations that give a direction, by label of the parameters."""

    by_label: dict[str, optax.GradientTransformation]
    labels: Callable[[Trainable], Any]


def build_named_optimizer(
    name: str,
    rate: Callable[[Array, Array], Array],
    *,
    max_grad_norm: Number,
    ratios: RateRatios,
    betas: Betas,
    weight_decay: Number,
) -> optax.GradientTransformationExtraArgs:
    """Make clipping by the global norm, then the direction u of the optimizer, then the move.

    Δp = −ratio · rate(t, b) · (u + decay · p), with b the birth of an entry.

    Args:
        name: adamw, lion, adafactor, muon or sgd.
        rate: (step t [], births b of a leaf) → the learning rate of every entry.
        max_grad_norm: the norm of all gradients together at most.
        ratios: the rates of λ and B over that of A.
        betas: of Adam and Lion; Muon takes them for λ and the head.
        weight_decay: the decay.

    Returns:
        A transformation of `Trainable` with the extra arguments `step` and `born`.
    """
    if name == "adamw":
        return build_optimizer(
            rate,
            max_grad_norm=max_grad_norm,
            ratios=ratios,
            **betas._asdict(),
            weight_decay=weight_decay,
        )
    direction = _DIRECTIONS[name](betas)
    return optax.chain(
        clip_by_global_norm(max_grad_norm),
        optax.multi_transform(
            direction.by_label, direction.labels, mask_compatible_extra_args=True
        ),
        move_by_rate(rate, ratios, weight_decay),
    )


def _by_kind(
    adapter: optax.GradientTransformation, head: optax.GradientTransformation
) -> Direction:
    return Direction({"adapter": adapter, "head": head}, lambda params: LABELS)


def _sgd(betas: Betas) -> Direction:
    """u = g."""
    return _by_kind(optax.identity(), optax.identity())


def _lion(betas: Betas) -> Direction:
    """u = sign(β₁·m + (1 − β₁)·g) (arXiv 2302.06675)."""
    lion = optax.scale_by_lion(betas.b1, betas.b2)
    return _by_kind(slotwise(lion), lion)


def _adafactor(betas: Betas) -> Direction:
    """u = g/√v, clipped to a root mean square of 1 a matrix (arXiv 1804.04235).

    v of an adapter is not factored: it would save few numbers, and a row's average would be that of
    slots of different ages.
    """
    clip = optax.clip_by_block_rms(BLOCK_RMS)
    adapter = optax.chain(slotwise(optax.scale_by_factored_rms(factored=False)), matrixwise(clip))
    return _by_kind(adapter, optax.chain(optax.scale_by_factored_rms(), clip))


def _muon(betas: Betas) -> Direction:
    """u = the orthogonal factor of the momentum of A and of B; Adam for λ and the head."""
    muon = optax.contrib.muon(-1.0, beta=MOMENTUM)  # whose own rate turns the direction's sign
    adam = optax.scale_by_adam(*betas)
    by_label = {"matrix": matrixwise(muon), "slot": slotwise(adam), "head": adam}

    def labels(params: Trainable) -> Any:
        fields: Any = Adapter("matrix", "slot", "matrix")  # type: ignore[arg-type]
        return Trainable(dict.fromkeys(params.adapter, fields), "head")  # type: ignore[arg-type]

    return Direction(by_label, labels)


_DIRECTIONS: dict[str, Callable[[Betas], Direction]] = {
    "lion": _lion,
    "adafactor": _adafactor,
    "muon": _muon,
    "sgd": _sgd,
}

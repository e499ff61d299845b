"""The low-rank update: its parameters, its slots and its scale."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from increlora_jax.core.schedule import Number, as_dtype

RESERVE_LAMBDA = 1e-5
"""λ̂ of a reserve slot that learns in advance, and λ of a slot it becomes (paper §3.3)."""

RANK_EPSILON = 1e-5
"""Keeps α/r finite at rank 0 (reference trace, `scale_eps`)."""

NEVER = jnp.iinfo(jnp.int32).max
"""The birth of a leaf that has not become trainable yet."""


Result = TypeVar("Result")


class Adapter(NamedTuple):
    """The parameters of one target module's update, `max_rank` slots wide."""

    A: Float[Array, "*stack inputs slots"]
    lam: Float[Array, "*stack slots"]
    B: Float[Array, "*stack slots outputs"]


class Slots(NamedTuple):
    """The kind of each slot, and the first step at which its leaves may learn.

    A slot in `active` takes part in the forward pass with its own λ. A slot in `reserve` does not
    count in the rank. A slot in both is on trial: applied, but not counted. A slot in neither is
    dormant. `is_advancing` says whether the rest of the reserve takes part at λ̂ = 1e-5.
    """

    active: Bool[Array, "*stack slots"]
    reserve: Bool[Array, "*stack slots"]
    is_advancing: Bool[Array, "*stack"]
    lambda_born: Int[Array, "*stack slots"]
    matrix_born: Int[Array, "*stack slots"]

    @property
    def counted(self) -> Bool[Array, "*stack slots"]:
        """The slots that count in the rank."""
        return self.active & ~self.reserve

    @property
    def rank(self) -> Int[Array, "*stack"]:
        """Number of slots that count."""
        return self.counted.sum(axis=-1, dtype=jnp.int32)

    @property
    def applied(self) -> Bool[Array, "*stack slots"]:
        """The slots that take part in the forward pass."""
        return self.active | (self.reserve & self.is_advancing[..., None])


class Scaling(NamedTuple):
    """The rule for s: `rank` is α/(r + 1e-5), `target` α/target_rank, `rsqrt` α/√r."""

    alpha: Number
    rule: Literal["rank", "target", "rsqrt"] = "rank"
    target_rank: Number = 1.0

    def given(self, settings: Mapping[str, Number]) -> "Scaling":
        """Return the rule with the numbers of a state, where it has them."""
        alpha = settings.get("lora_alpha", self.alpha)
        return self._replace(alpha=alpha, target_rank=settings.get("target_rank", self.target_rank))

    def __call__(self, rank: Int[Array, "*stack"], dtype: DTypeLike) -> Float[Array, "*stack"]:
        """Compute s from the module's current rank r."""
        r, alpha = rank.astype(dtype), as_dtype(self.alpha, dtype)
        match self.rule:
            case "rank":
                return alpha / (r + RANK_EPSILON)
            case "target":
                return jnp.full_like(r, alpha / as_dtype(self.target_rank, dtype))
            case "rsqrt":
                return alpha / jnp.sqrt(r + RANK_EPSILON)


class Update(NamedTuple):
    """The update as one forward pass applies it: ΔW = s · A diag(λ̂) B."""

    A: Float[Array, "*stack inputs slots"]
    lam_hat: Float[Array, "*stack slots"]
    B: Float[Array, "*stack slots outputs"]
    scale: Float[Array, "*stack"]
    slots: Slots

    @property
    def delta(self) -> Float[Array, "*stack inputs outputs"]:
        """The dense ΔW."""
        coefficients = self.scale[..., None] * self.lam_hat
        return (self.A * coefficients[..., None, :]) @ self.B


def init_slots(max_rank: int, initial_rank: int, stack: tuple[int, ...] = ()) -> Slots:
    """Open the first `initial_rank` slots as active, born at step 0; the rest is dormant."""
    active = jnp.broadcast_to(jnp.arange(max_rank) < initial_rank, (*stack, max_rank))
    born = jnp.where(active, 0, NEVER).astype(jnp.int32)
    return Slots(active, jnp.zeros_like(active), jnp.zeros(stack, bool), born, born)


def effective_lambda(adapter: Adapter, slots: Slots) -> Float[Array, "*stack slots"]:
    """λ̂: λ on active slots, 1e-5 on another reserve that learns in advance, 0 elsewhere."""
    resting = jnp.where(slots.applied, RESERVE_LAMBDA, 0.0).astype(adapter.lam.dtype)
    return jnp.where(slots.active, adapter.lam, resting)


def effective_update(
    adapter: Adapter, slots: Slots, scaling: Scaling | Float[Array, "*stack"]
) -> Update:
    """Put parameters, slots and the rule for s, or s itself, together into an update."""
    if isinstance(scaling, Scaling):
        scaling = scaling(slots.rank, adapter.lam.dtype)
    return Update(adapter.A, effective_lambda(adapter, slots), adapter.B, scaling, slots)


def over_stack(function: Callable[..., Result], depth: int) -> Callable[..., Result]:
    """Map a function of one matrix's arrays over `depth` leading axes of all its arguments."""
    for _ in range(depth):
        function = jax.vmap(function)
    return function

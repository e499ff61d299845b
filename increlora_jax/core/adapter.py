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
    """Parameters of the low-rank update of one target module.

    Attributes:
        A: left factors, one column a slot [*stack, inputs, slots].
        lam: λ, the weights of the slots [*stack, slots].
        B: right factors, one row a slot [*stack, slots, outputs].

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> il.Adapter(A=jnp.zeros((6, 8)), lam=jnp.zeros(8), B=jnp.zeros((8, 4))).lam.shape
    (8,)
    """

    A: Float[Array, "*stack inputs slots"]
    lam: Float[Array, "*stack slots"]
    B: Float[Array, "*stack slots outputs"]


class Slots(NamedTuple):
    """Kinds of the slots of one target module, and the first steps at which they learn.

    A slot in `active` and `reserve` is on trial: applied, but not counted in the rank. A slot in
    neither is dormant.

    Attributes:
        active: slots that take part in the forward pass with their own λ [*stack, slots].
        reserve: slots that do not count in the rank [*stack, slots].
        is_advancing: whether the rest of the reserve takes part with λ̂ = 1e-5 [*stack].
        lambda_born: the first step at which λ may learn [*stack, slots].
        matrix_born: the first step at which A and B may learn [*stack, slots].

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> _, parts = il.split(il.attach({"w": jnp.ones((4, 4))}), lambda path: False)
    >>> slots = parts.slots["w"]
    >>> type(slots) is il.Slots, int(slots.rank), int(slots.lambda_born[0])
    (True, 1, 0)
    """

    active: Bool[Array, "*stack slots"]
    reserve: Bool[Array, "*stack slots"]
    is_advancing: Bool[Array, "*stack"]
    lambda_born: Int[Array, "*stack slots"]
    matrix_born: Int[Array, "*stack slots"]

    @property
    def counted(self) -> Bool[Array, "*stack slots"]:
        """Return the slots that count in the rank."""
        return self.active & ~self.reserve

    @property
    def rank(self) -> Int[Array, "*stack"]:
        """Return the number of slots that count."""
        return self.counted.sum(axis=-1, dtype=jnp.int32)

    @property
    def applied(self) -> Bool[Array, "*stack slots"]:
        """Return the slots that take part in the forward pass."""
        return self.active | (self.reserve & self.is_advancing[..., None])


class Scaling(NamedTuple):
    """Rule for s, the scale of an update.

    Attributes:
        alpha: α.
        rule: `rank` is α/(r + 1e-5), `target` is α/target_rank, `rsqrt` is α/√r, with the present
            rank r of the module. Default: `rank`.
        target_rank: of the rule `target` only; default: 1.

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> float(il.Scaling(16.0, "target", 4)(jnp.int32(1), jnp.float32))
    4.0
    """

    alpha: Number
    rule: Literal["rank", "target", "rsqrt"] = "rank"
    target_rank: Number = 1.0

    def given(self, settings: Mapping[str, Number]) -> "Scaling":
        """Return the rule with the numbers that a state's settings have."""
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
    """Update as one forward pass applies it: ΔW = s · A diag(λ̂) B."""

    A: Float[Array, "*stack inputs slots"]
    lam_hat: Float[Array, "*stack slots"]
    B: Float[Array, "*stack slots outputs"]
    scale: Float[Array, "*stack"]
    slots: Slots

    @property
    def delta(self) -> Float[Array, "*stack inputs outputs"]:
        """Compute the dense ΔW."""
        coefficients = self.scale[..., None] * self.lam_hat
        return (self.A * coefficients[..., None, :]) @ self.B


def init_slots(max_rank: int, initial_rank: int, stack: tuple[int, ...] = ()) -> Slots:
    """Open the first `initial_rank` slots as active, born at step 0; the others are dormant."""
    active = jnp.broadcast_to(jnp.arange(max_rank) < initial_rank, (*stack, max_rank))
    born = jnp.where(active, 0, NEVER).astype(jnp.int32)
    return Slots(active, jnp.zeros_like(active), jnp.zeros(stack, bool), born, born)


def effective_lambda(adapter: Adapter, slots: Slots) -> Float[Array, "*stack slots"]:
    """Compute λ̂: λ on active slots, 1e-5 on other slots that are applied, 0 elsewhere."""
    resting = jnp.where(slots.applied, RESERVE_LAMBDA, 0.0).astype(adapter.lam.dtype)
    return jnp.where(slots.active, adapter.lam, resting)


def effective_update(
    adapter: Adapter, slots: Slots, scaling: Scaling | Float[Array, "*stack"]
) -> Update:
    """Make an update of parameters, slots and the rule for s, or s itself."""
    if isinstance(scaling, Scaling):
        scaling = scaling(slots.rank, adapter.lam.dtype)
    return Update(adapter.A, effective_lambda(adapter, slots), adapter.B, scaling, slots)


def over_stack(function: Callable[..., Result], depth: int) -> Callable[..., Result]:
    """Map a function of one matrix's arrays over `depth` leading axes of all its arguments."""
    for _ in range(depth):
        function = jax.vmap(function)
    return function

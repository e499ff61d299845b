"""The state that changes from step to step, of one run."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from increlora_jax.core.adapter import Slots
from increlora_jax.core.optimizer import Trainable


class TrainState(NamedTuple):
    """Everything a step changes; the frozen base is not part of it."""

    step: Int[Array, ""]  # the optimizer's: steps that were skipped do not count
    skipped: Int[Array, ""]
    key: Array  # of the run; a step's own key is folded in from its number
    params: Trainable
    slots: dict[str, Slots]
    method: Any
    opt_state: Any
    settings: dict[str, Array]  # of the run's, those that have another value here
    # Written by the forward pass, such as a BatchNorm's; nothing changes the default.
    statistics: dict[str, Array] = {}  # noqa: RUF012

    @property
    def total_rank(self) -> Int[Array, ""]:
        """Sum of the ranks of all modules."""
        ranks = [slots.rank.sum() for slots in self.slots.values()]
        return jnp.sum(jnp.stack(ranks)) if ranks else jnp.zeros((), jnp.int32)

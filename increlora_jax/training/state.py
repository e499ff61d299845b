"""The state that changes from step to step, of one run."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from increlora_jax.core.adapter import Slots
from increlora_jax.core.optimizer import Trainable


class TrainState(NamedTuple):
    """The arrays of a run that a step takes and returns; the frozen base is not part of it.

    Attributes:
        step: optimizer steps so far []; skipped steps do not count.
        skipped: steps that were not finite [].
        key: of the run []; each step folds in its number.
        params: everything trainable.
        slots: the masks and births of adapters, by module or in stacks (`core.stacking`).
        method: the state of the method.
        opt_state: the state of the optimizer.
        settings: the numbers of the run by flag, each []: learning rate, α, budget and others.
        statistics: values that the forward pass writes, such as a BatchNorm's, by path.

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> params = {"w": jnp.ones((4, 4))}
    >>> _, state, _ = il.prepare(params, il.lora(params), total_steps=10)
    >>> int(state.step), int(state.total_rank), float(state.settings["lora_alpha"])
    (0, 2, 16.0)
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    key: Array
    params: Trainable
    slots: dict[Any, Slots]
    method: PyTree
    opt_state: optax.OptState
    settings: dict[str, Array]
    # Nothing changes the default.
    statistics: dict[str, Array] = {}  # noqa: RUF012

    @property
    def total_rank(self) -> Int[Array, ""]:
        """The sum of the ranks of all modules []."""
        ranks = [slots.rank.sum() for slots in self.slots.values()]
        return jnp.sum(jnp.stack(ranks)) if ranks else jnp.zeros((), jnp.int32)

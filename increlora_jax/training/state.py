"""The state that changes from step to step, of one run or of several together."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import jax
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
    def members(self) -> tuple[int, ...]:
        """() for the state of one run; (n,) for those of n that train together, stacked."""
        return self.step.shape

    @property
    def total_rank(self) -> Int[Array, ""]:
        """Sum of the ranks of all modules."""
        ranks = [slots.rank.sum() for slots in self.slots.values()]
        return jnp.sum(jnp.stack(ranks)) if ranks else jnp.zeros((), jnp.int32)

    def pick(self, index: int) -> Self:
        """The state of one member; of a single run it is this one."""
        return _pick(self, index) if self.members else self


@partial(jax.jit, static_argnames="index")
def _pick(stacked: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def stack(states: Sequence[TrainState]) -> TrainState:
    """Put the states of runs that train together along a first axis; one alone stays as it is."""
    if len(states) == 1:
        return states[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def over_members(state: TrainState, function: Callable[..., Any], *axes: int | None) -> Callable:
    """Map a function of a state, and of arguments with these `axes`, over the members of `state`.

    For a single run it is the function itself, so that its programs are those of its own.
    """
    return jax.vmap(function, in_axes=(0, *axes)) if state.members else function

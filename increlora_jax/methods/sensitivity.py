"""The importance of single slots from the gradients of a step, as AdaLoRA measures it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from increlora_jax.core.regularizer import mean_orthogonality
from increlora_jax.core.stacking import Group
from increlora_jax.core.triplets import EntryAverages, average_entries
from increlora_jax.methods.base import Observation


def move_averages(seen: Observation, *, moves: Bool[Array, ""]) -> dict[Group, EntryAverages]:
    """Return the averages, moved by the gradient of the loss with its orthogonality.

    Args:
        seen: the step; `state` has the averages before it.
        moves: whether they move at all.
    """
    pull = jax.grad(lambda adapters: mean_orthogonality(adapters, seen.slots))(seen.adapters)
    weight, state = seen.settings["reg_orth_coef"], {}
    for key, before in seen.state.items():
        gradient = jax.tree.map(lambda g, p: g + weight * p, seen.gradients[key], pull[key])
        decays = seen.settings["beta1"], seen.settings["beta2"]
        after = average_entries(seen.moved[key], gradient, before, *decays)
        state[key] = jax.tree.map(lambda n, o: jnp.where(moves, n, o), after, before)
    return state

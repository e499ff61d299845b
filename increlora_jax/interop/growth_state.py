"""The state of growth inside a host's optimizer, and the host's leaves by their paths."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, PyTree

from increlora_jax.core.adapter import Slots
from increlora_jax.core.optimizer import Trainable
from increlora_jax.errors import InputError
from increlora_jax.training.state import TrainState

Path = tuple[str, ...]

_VALUES = ("value", "raw_value")


class GrowthState(NamedTuple):
    """State of the transformation.

    It holds the numbers of its plan: one that a checkpoint gives back grows by the plan that it
    was begun with.

    Attributes:
        state: the state of a trainer; its key is one of numbers. It has parameters only where they
            are not the host's own.
    """

    state: TrainState


def pack(state: TrainState) -> GrowthState:
    """Return a state in arrays that every checkpoint can hold."""
    return GrowthState(state._replace(key=jax.random.key_data(state.key)))


def begin(state: TrainState) -> GrowthState:
    """Return a state in buffers of its own, which a host may donate."""
    return jax.tree.map(jnp.copy, pack(state))


def without_parameters(packed: GrowthState) -> GrowthState:
    """Return a state of parameters that are the host's own."""
    return GrowthState(packed.state._replace(params=Trainable({}, {})))


def unpack(packed: GrowthState) -> TrainState:
    """Return the trainer's state."""
    return packed.state._replace(key=jax.random.wrap_key_data(packed.state.key))


def follows_loss(optimizer: optax.GradientTransformation | None) -> bool:
    """Return whether an optimizer's update asks for the value of the loss."""
    if optimizer is None:
        return False
    params = {"w": jnp.ones((2, 2))}
    try:
        jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), params)
    except TypeError as error:
        return "'value'" in str(error)
    except Exception:  # it needs the very parameters that it was made for
        return False
    return False


def check_given(params: PyTree, value: Array | None, *, needs_value: bool) -> None:
    """Check the arguments of a host's update.

    Raises:
        ValueError: no parameters, as optax says it.
        InputError: no loss for an optimizer that follows it.
    """
    if params is None:
        raise ValueError("growth needs the parameters: update(gradients, state, params)")
    if needs_value and value is None:
        raise InputError(
            "growth: the optimizer follows the loss and does not get it. Give it by "
            "update(…, value=loss)"
        )


def as_loss(value: Array | None) -> Array:
    """Return the host's loss, or 0 if nothing reads it."""
    return jnp.zeros(()) if value is None else jnp.asarray(value)


def find_slots(optimizer: nnx.Optimizer[Any] | PyTree) -> dict[str, Slots]:
    """Return the slots of all modules that the transformations inside an optimizer grow.

    Raises:
        InputError: there is none.
    """
    tree = optimizer.opt_state if isinstance(optimizer, nnx.Optimizer) else optimizer
    leaves = jax.tree.leaves(nnx.as_pure(tree), is_leaf=lambda n: isinstance(n, GrowthState))
    found = [leaf for leaf in leaves if isinstance(leaf, GrowthState)]
    if not found:
        raise InputError(
            "the optimizer has no transformation of il.growth inside. Make it as "
            "nnx.Optimizer(model, il.growth(model, …), wrt=nnx.LoRAParam)"
        )
    return {name: own for each in found for name, own in each.state.slots.items()}


def leaves_by_path(tree: PyTree) -> dict[Path, Array]:
    """Return a host's arrays by the words of their paths."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def path_of(keys: tuple[Any, ...]) -> Path:
    """Return the path of a leaf as words, without the attribute of a variable's value."""
    words = [_word_of(key) for key in keys]
    return tuple(words[:-1] if words and words[-1] in _VALUES else words)


def _word_of(key: Any) -> str:
    """Return the word, number or name of a key of JAX's paths."""
    return str(next((getattr(key, n) for n in ("key", "idx", "name") if hasattr(key, n)), key))

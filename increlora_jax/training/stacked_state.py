"""The state of a loop between its steps: the modules of one shape in one stack.

A step's program then takes and returns a few dozen arrays and not a dozen for each module. The host
passes, and the compiler copies, each of them by itself.
"""

from collections.abc import Callable, Hashable
from typing import TypeVar

import jax
from jaxtyping import PyTree

from increlora_jax.core.stacking import Groups
from increlora_jax.training.sharding import Layout
from increlora_jax.training.state import TrainState
from increlora_jax.training.together import members, over_members

Dicts = list[dict[Hashable, PyTree]]
"""The parts of a state that have an entry for every module, or for every stack of modules."""

Keys = frozenset[Hashable]
T = TypeVar("T")


class Stacker:
    """Stacks the modules of a state whose arrays have one shape and one sharding.

    Attributes:
        shapes: of the stacked state, for a program that is compiled before there is a state.
    """

    def __init__(self, layout: Layout, state: TrainState):
        axes = len(members(state))
        adapters = state.params.adapter
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[axes:], x.dtype), adapters)
        groups = Groups(one, jax.tree.map(_division, layout.shardings(one)))
        self._names, self._groups = Keys(adapters), Keys(groups.keys)
        stack, unstack = (over_members(state, f) for f in (groups.stack, groups.unstack))
        self.shapes: TrainState = jax.eval_shape(stack, state)
        shardings = _dicts(layout.shardings(self.shapes, axes), self._groups)
        self._stack = jax.jit(stack, out_shardings=shardings)
        shardings = _dicts(layout.shardings(state, axes), self._names)
        self._unstack = jax.jit(unstack, out_shardings=shardings)

    def stack(self, state: TrainState) -> TrainState:
        """Return the stacked state in place of `state`, and delete the arrays that were stacked.

        No array exists twice. Arrays that are not by module are not copied.
        """
        if not self._names:
            return state
        stacked = _exchange(state, self._names, self._stack)
        for leaf in jax.tree.leaves(_dicts(state, self._names)):
            leaf.delete()
        return stacked

    def unstack(self, stacked: TrainState) -> TrainState:
        """Return the state by module; `stacked` stays valid."""
        return _exchange(stacked, self._groups, self._unstack) if self._names else stacked


def _division(sharding: jax.sharding.NamedSharding) -> jax.sharding.PartitionSpec | None:
    """Return the axes of the mesh that divide an array; None if every device has all of it."""
    return None if sharding.is_fully_replicated else sharding.spec


def _dicts(tree: PyTree, keys: Keys) -> Dicts:
    return [leaf for leaf in _flatten(tree, keys)[0] if _is_one(leaf, keys)]


def _exchange(tree: T, keys: Keys, convert: Callable[[Dicts], Dicts]) -> T:
    """Convert all dictionaries with these keys at once, and put the results in their places."""
    leaves, structure = _flatten(tree, keys)
    made = iter(convert(_dicts(tree, keys)))
    filled: T = structure.unflatten(
        [next(made) if _is_one(leaf, keys) else leaf for leaf in leaves]
    )
    return filled


def _flatten(tree: PyTree, keys: Keys) -> tuple[list[PyTree], jax.tree_util.PyTreeDef]:
    return jax.tree.flatten(tree, is_leaf=lambda node: _is_one(node, keys))


def _is_one(node: PyTree, keys: Keys) -> bool:
    return isinstance(node, dict) and node.keys() == keys

"""A state as it lies between the steps of a loop: the modules of one shape in one stack.

A step's program then takes and makes a few dozen arrays and not a dozen for each module, which the
host has to hand over, and the compiler to copy, one by one. `Trainer.update` stacks modules in the
same way (`core.groups`), so that between two steps nothing of it is taken apart.
"""

from collections.abc import Callable
from typing import Any

import jax

from increlora_jax.core.stacking import Groups
from increlora_jax.training.sharding import Layout
from increlora_jax.training.state import TrainState, over_members

Dicts = list[dict[Any, Any]]
"""Those parts of a state that have an entry for every module, or for every stack of modules."""


class AtRest:
    """Stacks the modules whose arrays have one shape and lie alike; of each run by itself."""

    def __init__(self, layout: Layout, state: TrainState):
        stack = len(state.members)
        adapters = state.params.adapter
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[stack:], x.dtype), adapters)
        self.groups = Groups(one, jax.tree.map(_division, layout.shardings(one)))
        self._names, self._keys = frozenset(adapters), frozenset(self.groups.keys)
        pack, unpack = (over_members(state, f) for f in (self.groups.pack, self.groups.unpack))
        self.shapes: TrainState = jax.eval_shape(pack, state)
        """Of a state at rest, for who has none and compiles all the same."""
        lies = _dicts(layout.shardings(self.shapes, stack), self._keys)
        self._pack = jax.jit(pack, out_shardings=lies)
        lies = _dicts(layout.shardings(state, stack), self._names)
        self._unpack = jax.jit(unpack, out_shardings=lies)

    def pack(self, state: TrainState) -> TrainState:
        """The state at rest, which takes the place of `state`: what is stacked of that is deleted.

        Neither is ever held twice; what is not by module is not even copied.
        """
        if not self._names:
            return state
        packed = _exchange(state, self._names, self._pack)
        for leaf in jax.tree.leaves(_dicts(state, self._names)):
            leaf.delete()
        return packed

    def unpack(self, packed: TrainState) -> TrainState:
        """The inverse: by module, as everything but a step's program wants it; `packed` stays."""
        return _exchange(packed, self._keys, self._unpack) if self._names else packed


def _division(sharding: Any) -> Any:
    """Return how an array is divided; None if it is whole on every device."""
    return None if sharding.is_fully_replicated else sharding.spec


def _dicts(tree: Any, keys: frozenset[Any]) -> Dicts:
    return [leaf for leaf in _flatten(tree, keys)[0] if _is_one(leaf, keys)]


def _exchange(tree: Any, keys: frozenset[Any], convert: Callable[[Dicts], Dicts]) -> Any:
    """Put what `convert` makes of the dictionaries with these keys in their places."""
    leaves, structure = _flatten(tree, keys)
    made = iter(convert(_dicts(tree, keys)))
    return structure.unflatten([next(made) if _is_one(leaf, keys) else leaf for leaf in leaves])


def _flatten(tree: Any, keys: frozenset[Any]) -> tuple[list[Any], Any]:
    return jax.tree.flatten(tree, is_leaf=lambda node: _is_one(node, keys))


def _is_one(node: Any, keys: frozenset[Any]) -> bool:
    return isinstance(node, dict) and node.keys() == keys

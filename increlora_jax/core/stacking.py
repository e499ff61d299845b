"""Modules of one shape as one stack: what is done to each of them is done to all at once.

A model has dozens of modules of a few shapes, each with a dozen small arrays. Work on them one by
one is thousands of kernels a step, which take longer to start than to run.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

Key = tuple[str, ...]
"""The names of the modules of a group, in order."""


def by_name(packed: dict[Any, Any]) -> dict[str, Any]:
    """The inverse of stacking a dictionary, for which the names of the groups suffice."""
    return {
        name: jax.tree.map(lambda leaf, place=place: leaf[place], together)
        for key, together in packed.items()
        for place, name in enumerate(key)
    }


class Groups:
    """Stacks of the modules whose arrays have the same shapes and dtypes.

    `kinds` may say more of each module in which those of a group must agree.
    """

    def __init__(self, arrays: dict[str, Any], kinds: dict[str, Any] | None = None):
        found = defaultdict(list)
        for name, own in arrays.items():
            shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(own))
            found[shapes, kinds and kinds[name]].append(name)
        self.keys: tuple[Key, ...] = tuple(map(tuple, found.values()))
        self._names = frozenset(arrays)

    def pack(self, tree: Any) -> Any:
        """Stack the modules of each group, wherever in `tree` a dictionary has all of them."""
        return _map_dicts(self._pack, self._names, tree)

    def unpack(self, tree: Any) -> Any:
        """The inverse of `pack`."""
        return _map_dicts(by_name, frozenset(self.keys), tree)

    def pack_away(self, modules: dict[str, Any]) -> dict[Key, Any]:
        """Stack a dictionary's modules and take them out of it, so that few are there twice."""
        return {key: _stack([modules.pop(name) for name in key]) for key in self.keys}

    def _pack(self, modules: dict[str, Any]) -> dict[Key, Any]:
        return {key: _stack([modules[name] for name in key]) for key in self.keys}


def _map_dicts(function: Any, keys: frozenset[Any], tree: Any) -> Any:
    def is_one(node: Any) -> bool:
        return isinstance(node, dict) and node.keys() == keys

    return jax.tree.map(lambda node: function(node) if is_one(node) else node, tree, is_leaf=is_one)


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def flatten(values: dict[Key, Array], names: tuple[str, ...]) -> Array:
    """One entry a matrix, of values [members, *stack] by group; in the order of `names`."""
    together = jnp.concatenate([value.reshape(-1) for value in values.values()])
    return together[_places(values, names)]


def unflatten(flat: Array, like: dict[Key, Array], names: tuple[str, ...]) -> dict[Key, Array]:
    """The inverse of `flatten`, for values of the shapes of `like`."""
    together = flat[np.argsort(_places(like, names))]
    ends = np.cumsum([value.size for value in like.values()])
    pieces = jnp.split(together, ends[:-1])
    return {
        key: piece.reshape(value.shape)
        for (key, value), piece in zip(like.items(), pieces, strict=True)
    }


def _places(values: dict[Key, Array], names: tuple[str, ...]) -> np.ndarray:
    """Where each entry in the order of `names` lies in the order of the groups."""
    places: dict[str, np.ndarray] = {}
    begun = 0
    for key, value in values.items():
        each = np.arange(begun, begun + value.size).reshape(len(key), -1)
        places |= dict(zip(key, each, strict=True))
        begun += value.size
    return np.concatenate([places[name] for name in names])

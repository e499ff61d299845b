"""Modules of one shape as one stack, so that one operation serves all of them.

A model has dozens of modules of a few shapes, each with a dozen small arrays. To treat them one by
one takes thousands of kernels a step, which take longer to start than to run.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from math import prod
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

Group = tuple[str, ...]
"""The names of the modules in a stack, in order; the key of the stack in a dictionary."""

T = TypeVar("T")


def is_stacked(modules: Mapping[str, T] | Mapping[Group, T]) -> bool:
    """Return whether the keys of a dictionary are groups of modules, and not single modules."""
    return any(isinstance(key, tuple) for key in modules)


def by_name(modules: Mapping[str, T] | Mapping[Group, T]) -> dict[str, T]:
    """Return a dictionary by module: stacks are taken apart, single modules stay as they are."""
    single: dict[str, T] = {}
    for key, value in modules.items():
        if isinstance(key, tuple):
            single |= zip(key, _split(value, len(key)), strict=True)
        else:
            single[key] = value
    return single


class Groups:
    """The groups of the modules whose arrays have the same shapes and dtypes.

    Args:
        arrays: the arrays of each module; shapes are enough.
        kinds: more in which the modules of a group must agree.
    """

    def __init__(
        self, arrays: Mapping[str, PyTree], kinds: Mapping[str, Hashable] | None = None
    ) -> None:
        found = defaultdict(list)
        for name, own in arrays.items():
            shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(own))
            found[shapes, kinds and kinds[name]].append(name)
        self.keys: tuple[Group, ...] = tuple(map(tuple, found.values()))

    def stack(self, tree: T) -> T:
        """Stack the modules of each group, wherever in `tree` a dictionary has all of them."""
        return stack_dicts(self.keys, tree)

    def unstack(self, tree: T) -> T:
        """Undo `stack`."""
        return unstack_dicts(self.keys, tree)

    def stack_away(self, modules: dict[str, T]) -> dict[Group, T]:
        """Stack the modules of a dictionary and empty it, so that few arrays exist twice."""
        return {key: _stack([modules.pop(name) for name in key]) for key in self.keys}


def unstack_dicts(keys: tuple[Group, ...], tree: T) -> T:
    """Take apart every dictionary of `tree` that has these groups."""
    return _map_dicts(by_name, frozenset(keys), tree)


def stack_dicts(keys: tuple[Group, ...], tree: T) -> T:
    """Stack every dictionary of `tree` that has all modules of these groups."""

    def stack(modules: Mapping[str, PyTree]) -> dict[Group, PyTree]:
        return {key: _stack([modules[name] for name in key]) for key in keys}

    return _map_dicts(stack, frozenset(name for key in keys for name in key), tree)


def _map_dicts(function: Callable[..., PyTree], keys: frozenset[Hashable], tree: T) -> T:
    def is_one(node: PyTree) -> bool:
        return isinstance(node, dict) and node.keys() == keys

    return jax.tree.map(lambda node: function(node) if is_one(node) else node, tree, is_leaf=is_one)


def _stack(trees: Sequence[T]) -> T:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _split(stacked: T, count: int) -> list[T]:
    """Take a stack apart. The gradient of a split is one concatenation, of slices it is a sum."""
    leaves, structure = jax.tree.flatten(stacked)
    if not leaves:
        return [stacked] * count
    pieces = [
        [jax.lax.squeeze(piece, (0,)) for piece in jax.lax.split(leaf, (1,) * count)]
        for leaf in leaves
    ]
    return [jax.tree.unflatten(structure, own) for own in zip(*pieces, strict=True)]


def flatten(values: Mapping[Group, Array], names: tuple[str, ...], *, trailing: int = 0) -> Array:
    """Return one entry for each matrix, in the order of `names`.

    `values` are [members, *stack] by group, and may have trailing axes that are kept.
    """
    shapes = {key: value.shape[: value.ndim - trailing] for key, value in values.items()}
    rows = [value.reshape(-1, *value.shape[value.ndim - trailing :]) for value in values.values()]
    return jnp.concatenate(rows)[_places(shapes, names)]


def unflatten(
    flat: Array, like: Mapping[Group, Array], names: tuple[str, ...]
) -> dict[Group, Array]:
    """Undo `flatten`, for values of the shapes of `like` and of the trailing axes of `flat`."""
    shapes = {key: value.shape for key, value in like.items()}
    together = flat[np.argsort(_places(shapes, names))]
    ends = np.cumsum([value.size for value in like.values()])
    pieces = jnp.split(together, ends[:-1])
    return {
        key: piece.reshape(*value.shape, *flat.shape[1:])
        for (key, value), piece in zip(like.items(), pieces, strict=True)
    }


def _places(shapes: Mapping[Group, tuple[int, ...]], names: tuple[str, ...]) -> np.ndarray:
    """Return the place of each entry of `names` in the order of the groups."""
    places: dict[str, np.ndarray] = {}
    begun = 0
    for key, shape in shapes.items():
        size = prod(shape)
        each = np.arange(begun, begun + size).reshape(len(key), -1)
        places |= dict(zip(key, each, strict=True))
        begun += size
    return np.concatenate([places[name] for name in names])

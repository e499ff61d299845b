"""Adapters beside any pytree of parameters (Equinox, Haiku, your own), by effective weights."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import PyTreeDef
from jaxtyping import Array, PyTree

from increlora_jax.core.adapter import Adapter, Scaling, Slots
from increlora_jax.core.probe import Probe
from increlora_jax.errors import InputError
from increlora_jax.nn.initial import AdapterSettings
from increlora_jax.nn.kernels import KernelAxes, effective_weight
from increlora_jax.nn.rules import Rules, make_rules
from increlora_jax.nn.skeleton import NO_PROBES, Parts, module_names
from increlora_jax.nn.targets import (
    NO_DROPOUT,
    IsTrained,
    Places,
    Selection,
    Targets,
    Unknown,
    choose_known,
    declared_axes,
    learns,
    subtree_selector,
)

KIND = "matrix"

AnyArray = Array | np.ndarray | jax.ShapeDtypeStruct
Arrays = dict[str, Any]
"""Arrays by dotted path, all of them abstract or none."""


class AdaptedTree(NamedTuple):
    """Pytree of parameters with the adapters beside it."""

    params: PyTree
    adapters: dict[str, Adapter]
    slots: dict[str, Slots]
    axes: dict[str, KernelAxes]
    scaling: Scaling


class TreeShape(NamedTuple):
    """Pytree without its arrays: its structure, the paths of the arrays, and the other leaves."""

    structure: PyTreeDef
    names: tuple[str | None, ...]  # None of a leaf that is no array
    fixed: tuple[object, ...]  # None of an array

    def fill(self, arrays: Mapping[str, PyTree]) -> PyTree:
        """Return the pytree with arrays by path in their places."""
        leaves = [
            other if name is None else arrays[name]
            for name, other in zip(self.names, self.fixed, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)


def take_apart(tree: PyTree) -> tuple[TreeShape, Arrays]:
    """Return the shape of a pytree, and its arrays, which may be abstract, by dotted path.

    Raises:
        InputError: two arrays of one path.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    names, arrays = [], {}
    for path, leaf in flat:
        is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        name = jax.tree_util.keystr(path, simple=True, separator=".") if is_array else None
        if name in arrays:
            raise InputError(f"two arrays of the tree have the path {name}. Rename a key")
        if name is not None:
            arrays[name] = leaf
        names.append(name)
    fixed = tuple(None if name else leaf for name, (_, leaf) in zip(names, flat, strict=True))
    return TreeShape(structure, tuple(names), fixed), arrays


class ArraySite(NamedTuple):
    """Place for an adapter: an array."""

    kernel: str  # its path
    axes: KernelAxes
    shape: tuple[int, ...]


def find_targets(params: PyTree, selection: Selection) -> dict[str, ArraySite]:
    """Find the targeted arrays by path, in module order.

    An array of two axes is [inputs, outputs], if `parameters` does not declare it.

    Raises:
        InputError: a pattern that matches nothing, or an array of more axes that is not declared.
    """
    _, arrays = take_apart(params)
    shapes = {path: tuple(a.shape) for path, a in arrays.items() if is_kernel(a)}
    matrices = {path: KernelAxes((-2,), (-1,)) for path, s in shapes.items() if len(s) == 2}
    axes = matrices | declared_axes(shapes, selection.parameters)
    unknown = {
        path: Unknown("an array of more than two axes", {path: shape})
        for path, shape in shapes.items()
        if path not in axes
    }
    chosen = choose_known(Places([*axes], unknown, owned=shapes), selection, KIND)
    return {path: ArraySite(path, axes[path], shapes[path]) for path in chosen}


def is_kernel(array: AnyArray) -> bool:
    """Return whether an array could be a matrix, or a stack of them."""
    return len(array.shape) > 1 and jnp.issubdtype(array.dtype, jnp.floating)


def attach(
    params: PyTree, sites: Mapping[str, ArraySite], settings: AdapterSettings
) -> AdaptedTree:
    """Make adapters for arrays of a pytree, which stays as it is.

    Effective weights equal W bit for bit, since λ starts at 0; in a dtype narrower than the
    adapters' they are rounded once.

    Raises:
        InputError: a rank over a matrix, or dropout, for which effective weights have no place.
    """
    if settings.dropout:
        raise InputError(NO_DROPOUT)
    adapters, slots = settings.begin_all(sites)
    axes = {path: site.axes for path, site in sites.items()}
    return AdaptedTree(params, adapters, slots, axes, settings.scaling)


def split(adapted: PyTree, is_trained: IsTrained) -> tuple["TreeSkeleton", Parts]:
    """Take a tree, adapted or plain, apart; arrays learn in full if `is_trained(path)`."""
    if not isinstance(adapted, AdaptedTree):
        adapted = AdaptedTree(adapted, {}, {}, {}, Scaling(1.0))
    shape, arrays = take_apart(adapted.params)
    head, base = split_arrays(arrays, is_trained)
    warn_of_copies(arrays, {*adapted.axes, *head})
    skeleton = TreeSkeleton(shape, adapted.axes, adapted.scaling, module_names(adapted.slots))
    return skeleton, Parts(adapted.adapters, adapted.slots, head, base, rules=skeleton.rules)


def warn_of_copies(arrays: Mapping[str, AnyArray], changed: set[str]) -> None:
    """Warn of an array in several places: it becomes a parameter of each.

    A pytree has no shared leaves: a change of one place leaves the others as they are.
    """
    places: dict[int, list[str]] = {}
    for path, array in arrays.items():
        if isinstance(array, jax.Array | np.ndarray):
            places.setdefault(id(array), []).append(path)
    for paths in places.values():
        if len(paths) > 1 and not changed.isdisjoint(paths):
            warnings.warn(
                f"{' and '.join(paths)} are one array, and parameters of their own from now on: "
                "each is adapted or trained by itself",
                stacklevel=2,
            )


def split_arrays(
    arrays: Mapping[str, AnyArray], is_trained: IsTrained
) -> tuple[dict[str, Array], Arrays]:
    """Split arrays into a head that learns in full, in float32 at least, and a frozen base.

    Frozen arrays may be abstract.
    """
    head, base = {}, {}
    for path, array in arrays.items():
        is_abstract = isinstance(array, jax.ShapeDtypeStruct)
        value: Any = array if is_abstract else jnp.asarray(array)
        if learns(path, value.dtype, is_trained):
            # In bfloat16 small steps would be rounded away.
            head[path] = value.astype(jnp.promote_types(value.dtype, jnp.float32))
        else:
            base[path] = value
    return head, base


class TreeSkeleton(NamedTuple):
    """Skeleton of a pytree of parameters."""

    shape: TreeShape
    axes: dict[str, KernelAxes]
    scaling: Scaling
    modules: tuple[str, ...]

    @property
    def rules(self) -> Rules | None:
        """Return the rules by which the adapters are applied; see `make_rules`."""
        return make_rules(self.scaling, self.axes) if self.modules else None

    def assemble(
        self,
        parts: Parts,
        key: Array | None = None,
        probes: Mapping[str, Probe] = NO_PROBES,
    ) -> PyTree:
        """Put the tree together, with W + ΔW in the place of W; `key` is not used."""
        arrays = {**parts.base, **parts.head}
        for path, axes in self.axes.items():
            update = parts.update_of(path, self.scaling)
            arrays[path] = effective_weight(arrays[path], axes, update, probes.get(path))
        return self.shape.fill(arrays)

    def snapshot(self, model: PyTree) -> None:
        """Return nothing; see `Skeleton`."""

    def read_statistics(self, model: PyTree, parts: Parts, before: None) -> dict[str, Array]:
        """Return none: a function of a pytree returns its statistics itself."""
        return {}

    def merge(self, parts: Parts) -> PyTree:
        """Make a plain tree."""
        return self.assemble(parts)


def parameter_selector(params: PyTree, modules: Targets) -> IsTrained:
    """Return a test of array paths, true of and inside some subtrees, given as targets.

    Raises:
        InputError: a name that no subtree has.
    """
    return subtree_selector(take_apart(params)[1], modules)

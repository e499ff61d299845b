"""The graph of an NNX model: every path to a node, and replacement of nodes."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.tree_util import KeyPath, PyTreeDef
from jaxtyping import PyTree

from increlora_jax.errors import InputError
from increlora_jax.nn.effective import attributes_of

Path = tuple[Hashable, ...]
Node = TypeVar("Node")


def name_path(path: Iterable[Hashable]) -> str:
    """Join a path by dots."""
    return ".".join(map(str, path))


def name_nodes(nodes: Iterable[tuple[Path, Node]]) -> dict[str, Node]:
    """Collect nodes by their dotted paths.

    Raises:
        InputError: two nodes of one dotted path.
    """
    named: dict[str, Node] = {}
    for path, node in nodes:
        if name_path(path) in named:
            raise InputError(f"two parts of the model have the path {name_path(path)}. Rename one")
        named[name_path(path)] = node
    return named


def list_paths(model: nnx.Module) -> dict[str, nnx.Module | nnx.Variable[PyTree]]:
    """Collect every module and variable by dotted path: a shared one under each of its paths."""
    return name_nodes(_walk(model, (), frozenset()))


def find_shared(model: nnx.Module) -> dict[int, list[str]]:
    """Collect the paths of every variable that has several, by the variable's id.

    A module under several names is one place.
    """
    places: dict[int, list[str]] = {}
    for path, node in nnx.iter_graph(model):
        for part, child in _children(node):
            if isinstance(child, nnx.Variable):
                places.setdefault(id(child), []).append(name_path((*path, part)))
    return {key: sorted(paths) for key, paths in places.items() if len(paths) > 1}


def replace_nodes(model: nnx.Module, replacements: Mapping[int, object]) -> nnx.Module:
    """Replace nodes by id, in all containers of a model, and return the model."""
    _replaced(model, replacements, set())
    return model


def _walk(
    node: object, path: Path, above: frozenset[int]
) -> Iterator[tuple[Path, nnx.Module | nnx.Variable[PyTree]]]:
    if isinstance(node, nnx.Module | nnx.Variable) and path:
        yield path, node
    if id(node) not in above:
        for part, child in _children(node):
            yield from _walk(child, (*path, part), above | {id(node)})


def _children(node: object) -> list[tuple[Hashable, object]]:
    """List the children of a node by the parts of their paths, as Flax names them."""
    if isinstance(node, nnx.Variable):
        return []
    if isinstance(node, nnx.List):
        return list(enumerate(node))
    if isinstance(node, nnx.Pytree):
        return sorted(attributes_of(node).items())
    return [(_part(key[0]), child) for key, child in _flatten(node)[0] if key]


def _flatten(node: object) -> tuple[list[tuple[KeyPath, object]], PyTreeDef]:
    """Flatten the container that a node is, and no deeper."""
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)


def _part(key: Hashable) -> Hashable:
    for name in ("key", "idx", "name"):
        if hasattr(key, name):
            part: Hashable = getattr(key, name)
            return part
    return key


def _replaced(node: object, replacements: Mapping[int, object], seen: set[int]) -> object:
    """Return the replacement of a node, with everything below replaced as well."""
    node = replacements.get(id(node), node)
    is_changed_in_place = isinstance(node, nnx.Pytree | list | dict)
    if is_changed_in_place and id(node) in seen:
        return node
    seen.add(id(node))
    before = _children(node)
    after = [(part, _replaced(child, replacements, seen)) for part, child in before]
    if all(new is old for (_, new), (_, old) in zip(after, before, strict=True)):
        return node
    if not is_changed_in_place:  # such as a tuple
        return jax.tree.unflatten(_flatten(node)[1], [child for _, child in after])
    for (part, new), (_, old) in zip(after, before, strict=True):
        if new is not old:
            _put(node, part, new)
    return node


def _put(holder: object, part: Any, child: object) -> None:  # an index, a key or a name
    if isinstance(holder, nnx.List | list | dict):
        holder[part] = child
    else:
        setattr(holder, part, child)

"""The graph of an NNX model: every path to a node, and a node replaced wherever it stands."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from flax import nnx

from increlora_jax.errors import InputError

Path = tuple[Any, ...]


def name_path(path: Iterable[Any]) -> str:
    """Join a path by dots."""
    return ".".join(map(str, path))


def name_nodes(nodes: Iterable[tuple[Path, Any]]) -> dict[str, Any]:
    """Collect nodes by their dotted paths.

    Raises:
        InputError: two nodes of one dotted path.
    """
    named: dict[str, Any] = {}
    for path, node in nodes:
        if name_path(path) in named:
            raise InputError(f"two parts of the model have the path {name_path(path)}; rename one")
        named[name_path(path)] = node
    return named


def list_paths(model: nnx.Module) -> dict[str, Any]:
    """Collect every module and variable by dotted path: a shared one under each of its paths."""
    return name_nodes(_walk(model, (), frozenset()))


def find_shared(model: nnx.Module) -> dict[int, list[str]]:
    """Collect the paths of every variable that stands in several places, by the variable's id.

    A module under several names is one place.
    """
    places: dict[int, list[str]] = {}
    for path, node in nnx.iter_graph(model):
        for part, child in _children(node):
            if isinstance(child, nnx.Variable):
                places.setdefault(id(child), []).append(name_path((*path, part)))
    return {key: sorted(paths) for key, paths in places.items() if len(paths) > 1}


def replace_nodes(model: nnx.Module, replacements: Mapping[int, Any]) -> nnx.Module:
    """Put other nodes in the places of some, by id, in whatever containers; returns the model."""
    _replaced(model, replacements, set())
    return model


def _walk(node: Any, path: Path, above: frozenset[int]) -> Iterator[tuple[Path, Any]]:
    if isinstance(node, nnx.Module | nnx.Variable) and path:
        yield path, node
    if id(node) not in above:
        for part, child in _children(node):
            yield from _walk(child, (*path, part), above | {id(node)})


def _children(node: Any) -> list[tuple[Any, Any]]:
    """List what a node holds by the parts of its path, as Flax names them."""
    if isinstance(node, nnx.Variable):
        return []
    if isinstance(node, nnx.List):
        return list(enumerate(node))
    if isinstance(node, nnx.Pytree):
        held = vars(node).items()
        return sorted((name, child) for name, child in held if not name.startswith("_pytree__"))
    return [(_part(key), child) for key, child in _flatten(node)[0] if key]


def _flatten(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)


def _part(key: Any) -> Any:
    for name in ("key", "idx", "name"):
        if hasattr(key[0], name):
            return getattr(key[0], name)
    return key[0]


def _replaced(node: Any, replacements: Mapping[int, Any], seen: set[int]) -> Any:
    """Return the node that takes this one's place, everything below it replaced as well."""
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


def _put(holder: Any, part: Any, child: Any) -> None:
    if isinstance(holder, nnx.List | list | dict):
        holder[part] = child
    else:
        setattr(holder, part, child)

"""Statistics that a forward pass writes and a loop carries, such as those of a BatchNorm."""

import warnings
from collections.abc import Container, Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from increlora_jax.nn.layers import SlotState
from increlora_jax.nn.paths import name_nodes

COLLECTION = "batch_stats"
"""The collection of Linen's statistics; NNX has the type `nnx.BatchStat`."""


def read_statistics(
    model: nnx.Module, before: Mapping[str, Array], given: Mapping[Any, Any]
) -> dict[str, Array]:
    """Read the statistics of an NNX model after its forward pass.

    Args:
        model: the model that the loss was given.
        before: its statistics as they were, by path.
        given: its base as it was; a warning names what else the loss has written.
    """
    if not before and not _has_state(model):
        return {}
    variables = {
        name: variable
        for name, variable in name_nodes(nnx.to_flat_state(nnx.state(model))).items()
        if isinstance(variable, nnx.Variable)
    }
    after = {n: v.get_value() for n, v in variables.items() if isinstance(v, nnx.BatchStat)}
    others = {n: v for n, v in variables.items() if n not in before and _is_state(v)}
    written = [n for n, v in others.items() if _differ(v.get_raw_value(), given.get(n))]
    _warn_of_loss({name: type(variables[name]).__name__ for name in written})
    return _like(after, before)


def read_collections(
    written: Mapping[str, Array], before: Mapping[str, Array], known: Container[str]
) -> dict[str, Array]:
    """Read the statistics of a Linen model after its forward pass.

    Args:
        written: the arrays by path, the collection first, that `apply` has returned.
        before: its statistics as they were, by path.
        known: the collections of the model; a warning names others that were written.
    """
    after = {name: value for name, value in written.items() if name in before}
    lost = {name.partition(".")[0] for name in written.keys() - before.keys()}
    _warn_of_loss({n: "a collection" for n in sorted(lost) if n in known})
    return _like(after, before)


def is_statistic(path: str, parameters: Container[str]) -> bool:
    """Return whether the array of a Linen model at a path is one of its statistics."""
    return path.startswith(f"{COLLECTION}.") and path not in parameters


def _has_state(model: nnx.Module) -> bool:
    return any(_is_state(node) for _, node in nnx.iter_graph(model))


def _is_state(node: Any) -> bool:
    fixed = nnx.Param | nnx.RngState | SlotState
    return isinstance(node, nnx.Variable) and not isinstance(node, fixed)


def _differ(one: Any, other: Any) -> bool:
    leaves, others = map(id, jax.tree.leaves(one)), map(id, jax.tree.leaves(other))
    return list(leaves) != list(others)


def _like(after: Mapping[str, Array], before: Mapping[str, Array]) -> dict[str, Array]:
    """Take the values of the same paths and shapes, in the dtypes that the loop carries."""
    reshaped = {n for n, v in before.items() if n in after and after[n].shape != v.shape}
    _warn_of_loss(dict.fromkeys(sorted(reshaped), "in another shape"))
    kept = {name: value for name, value in after.items() if name not in reshaped}
    return {name: kept.get(name, old).astype(old.dtype) for name, old in before.items()}


def _warn_of_loss(written: Mapping[str, str]) -> None:
    if written:
        names = ", ".join(f"{name} ({what})" for name, what in written.items())
        warnings.warn(
            f"the forward pass writes {names}, which the training loop does not carry: the next "
            f"step starts without it. Make it an nnx.BatchStat (in Linen, of {COLLECTION!r}), or "
            "return it from the loss with has_aux=True",
            stacklevel=2,
        )

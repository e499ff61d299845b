"""Statistics that a forward pass writes for the next step, such as those of a BatchNorm."""

import warnings
from collections.abc import Container, Mapping

import jax
from flax import nnx
from jaxtyping import Array

from increlora_jax.nn.low_rank import LowRankAdapter
from increlora_jax.nn.paths import name_path

COLLECTION = "batch_stats"
"""The collection of Linen's statistics; NNX has the type `nnx.BatchStat`."""

_COMPUTES = (nnx.WeightNorm, nnx.SpectralNorm)
"""Wrappers that write the parameters of the layer within."""


def snapshot(model: nnx.Module) -> dict[str, object]:
    """Collect by path the variables, arrays and numbers that a forward pass could write.

    Random streams and adapters are left out. So are parameters that Flax's own wrappers compute
    from others at every call.
    """
    nodes = list(nnx.iter_graph(model))
    adapters = [path for path, node in nodes if isinstance(node, LowRankAdapter)]
    computed = [path for path, node in nodes if isinstance(node, _COMPUTES)]
    return {
        name_path(path): node.copy() if isinstance(node, nnx.Variable) else node
        for path, node in nodes
        if _can_be_written(node)
        and not any(path[: len(p)] == p for p in adapters)
        and not (isinstance(node, nnx.Param) and any(path[: len(p)] == p for p in computed))
    }


def read_statistics(
    model: nnx.Module,
    before: Mapping[str, Array],
    given: Mapping[str, object],
    trained: Container[str],
) -> dict[str, Array]:
    """Return the statistics of an NNX model after its forward pass.

    Args:
        model: the model that the loss has called.
        before: the statistics before, by path.
        given: the `snapshot` before; a warning names other values that the loss has written.
        trained: parameters that learn; a write of one looks like a derivative.
    """
    now = snapshot(model)
    others = {n: node for n, node in now.items() if n not in before and n not in trained}
    written = [name for name, node in others.items() if _differ(node, given.get(name))]
    _warn_of_loss({name: _say_kind(now[name]) for name in written})
    after = {n: v.get_value() for n, v in now.items() if isinstance(v, nnx.BatchStat)}
    return _like(after, before)


def read_collections(
    written: Mapping[str, Array], before: Mapping[str, Array], known: Container[str]
) -> dict[str, Array]:
    """Return the statistics of a Linen model after its forward pass.

    Args:
        written: the arrays that `apply` has returned, by path with the collection first.
        before: the statistics before, by path.
        known: the collections of the model; a warning names other ones that were written.
    """
    after = {name: value for name, value in written.items() if name in before}
    lost = {name.partition(".")[0] for name in written.keys() - before.keys()}
    _warn_of_loss({n: "a collection" for n in sorted(lost) if n in known})
    return _like(after, before)


def is_statistic(path: str, parameters: Container[str]) -> bool:
    """Return whether the array of a Linen model at a path is a statistic."""
    return path.startswith(f"{COLLECTION}.") and path not in parameters


def _can_be_written(node: object) -> bool:
    is_number = isinstance(node, int | float) and not isinstance(node, bool)  # such as a mode
    is_value = isinstance(node, nnx.Variable) and not isinstance(node, nnx.RngState)
    return is_number or is_value or isinstance(node, jax.Array)


def _differ(one: object, other: object) -> bool:
    """Return whether two nodes hold different arrays or numbers."""
    if isinstance(one, int | float):
        return bool(one != other)
    return list(map(id, jax.tree.leaves(one))) != list(map(id, jax.tree.leaves(other)))


def _say_kind(node: object) -> str:
    return type(node).__name__ if isinstance(node, nnx.Variable) else "an attribute"


def _like(after: Mapping[str, Array], before: Mapping[str, Array]) -> dict[str, Array]:
    """Return the new values of the same paths and shapes, in the old dtypes."""
    reshaped = {n for n, v in before.items() if n in after and after[n].shape != v.shape}
    _warn_of_loss(dict.fromkeys(sorted(reshaped), "in another shape"))
    kept = {name: value for name, value in after.items() if name not in reshaped}
    return {name: kept.get(name, old).astype(old.dtype) for name, old in before.items()}


def _warn_of_loss(written: Mapping[str, str]) -> None:
    if written:
        names = ", ".join(f"{name} ({kind})" for name, kind in written.items())
        warnings.warn(
            f"the forward pass writes {names}, which the training loop does not carry: the next "
            f"step starts without it. Make it an nnx.BatchStat (in Linen, of {COLLECTION!r}), or "
            "return it from the loss with has_aux=True",
            stacklevel=2,
        )

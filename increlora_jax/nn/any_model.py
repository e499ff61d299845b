"""Adapters for any model: an NNX module, a Linen module with its variables, or a pytree."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Unpack, runtime_checkable

from flax import nnx
from flax.linen import Module as Linen
from jaxtyping import PyTree

from increlora_jax.errors import InputError
from increlora_jax.nn import attach as modules
from increlora_jax.nn import linen, skeleton, tree
from increlora_jax.nn.initial import AdapterArguments, AdapterSettings
from increlora_jax.nn.kernels import stack_names
from increlora_jax.nn.linen import AdaptedLinen, LinenModel
from increlora_jax.nn.paths import list_paths
from increlora_jax.nn.skeleton import Parts, Skeleton
from increlora_jax.nn.targets import (
    ALL_LINEAR,
    NO_PARAMETERS,
    IsTrained,
    Parameters,
    Selection,
    Site,
    Targets,
    leave_trained,
    trains_nothing,
)


@runtime_checkable
class Way(Protocol):
    """The functions that each kind of model has in a file of its own."""

    def find_targets(self, model: PyTree, selection: Selection) -> Mapping[str, Site]:
        """Find the targets by path, in module order."""

    def attach(self, model: PyTree, sites: Mapping[str, Any], settings: AdapterSettings) -> PyTree:
        """Put adapters on sites, as `find_targets` of this way returns them."""

    def parameter_selector(self, model: PyTree, modules: Targets) -> IsTrained:
        """Return a test of parameter paths, true inside some modules."""


class Planned(NamedTuple):
    """The targets of a model, before anything is attached."""

    sizes: dict[str, tuple[int, int]]  # (inputs, outputs) of each as a matrix
    left_out: tuple[str, ...]  # targets that learn in full

    def describe(self) -> str:
        """Return a note of the targets that are left out; empty if there are none."""
        if not self.left_out:
            return ""
        many = f"{len(self.left_out)} target{'s' if len(self.left_out) > 1 else ''}"
        return f"; {many} left out, trained in full: {', '.join(self.left_out)}"


def plan_targets(
    model: PyTree,
    targets: Targets,
    exclude: Targets = (),
    parameters: Parameters = NO_PARAMETERS,
    is_trained: IsTrained = trains_nothing,
) -> Planned:
    """Find the targets of a model that may be abstract; each matrix of a stack apart, `path[3]`.

    Args:
        model: an NNX module, a `LinenModel` or a pytree of parameters.
        targets: the places to adapt; this and all else as in `attach`.
        exclude: the targets to leave out.
        parameters: how other parameters are matrices.
        is_trained: a test of parameter paths; kernels that learn in full are left out.

    Returns:
        The size of each target, and the targets that are left out.

    Raises:
        InputError: targets that match nothing, must be declared, or all learn in full; named.
    """
    selection = Selection(targets, exclude, parameters, is_trained)
    found = _way(model).find_targets(model, selection)
    left = leave_trained(found, is_trained)
    for path in left:
        if path.endswith("]"):
            raise InputError(
                f"{path} ends in ], as the name of a layer within a stack does. Rename it, or "
                "exclude it"
            )
    sizes = {
        name: site.axes.matrix_shape(site.shape)
        for path, site in left.items()
        for name in stack_names(path, site.axes.stack_shape(site.shape))
    }
    return Planned(sizes, tuple(path for path in found if path not in left))


def attach(
    model: PyTree,
    targets: Targets = ALL_LINEAR,
    *,
    exclude: Targets = (),
    parameters: Parameters = NO_PARAMETERS,
    is_trained: IsTrained = trains_nothing,
    rngs: nnx.Rngs | None = None,
    **adapters: Unpack[AdapterArguments],
) -> PyTree:
    """Put adapters on a model, in place on an NNX module; outputs stay the same bit for bit.

    Args:
        model: an NNX module, a `LinenModel` or a pytree of parameters.
        targets: a regex for whole paths, names that end a path, or "all-linear", the default.
        exclude: the targets to leave out, given in the same way; default: none.
        parameters: how other parameters are matrices, by a regex for their path; default: none.
        is_trained: a test of parameter paths; kernels that learn in full get no adapter.
        max_rank: slots of a buffer, one number for all or by path; default: 8.
        initial_rank: active slots of each; default: 1.
        scaling: the rule for s; default: 16/r.
        dropout: rate on the input of an adapter, from 0 (the default) to 1.
        rngs: draws A and B; default: `nnx.Rngs(0)`.
        dtype: of the adapters; default: float32.
        start: draws an adapter and its slots; default: A, B ~ N(0, 0.02²) and λ = 0.

    Returns:
        The same NNX module; a `LinenModel` or a pytree comes back as a record with the adapters.

    Raises:
        InputError: targets that match nothing or must be declared, or a rank over a matrix.

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> il.attach({"w": jnp.ones((8, 6))}, max_rank=4).adapters["w"].A.shape
    (8, 4)
    """
    way, selection = _way(model), Selection(targets, exclude, parameters, is_trained)
    sites = leave_trained(way.find_targets(model, selection), is_trained)
    return way.attach(model, sites, AdapterSettings(rngs or nnx.Rngs(0), **adapters))


def split(
    model: PyTree, is_trained: IsTrained, *, is_called_once: bool = False
) -> tuple[Skeleton, Parts]:
    """Take a model, adapted or not, apart into its skeleton and its arrays.

    Args:
        model: a model as `attach` returns it, or one without adapters.
        is_trained: a test of the paths of its own parameters that learn in full.
        is_called_once: of an NNX module, whether a forward pass calls each adapted layer once; its
            backward pass then holds one dense gradient at a time. Default: False.

    Returns:
        The skeleton, which puts the model together again, and the arrays by path.

    Raises:
        InputError: two arrays of one path, or a complex parameter that should learn in full.

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> skeleton, parts = il.split({"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, lambda p: p == "b")
    >>> list(parts.head), list(parts.base)
    (['b'], ['w'])
    """
    if isinstance(model, nnx.Module):
        return skeleton.split(model, is_trained, is_called_once=is_called_once)
    way = linen if isinstance(model, LinenModel | AdaptedLinen) else tree
    return way.split(model, is_trained)


def parameter_selector(model: PyTree, names: Targets) -> IsTrained:
    """Return a test of parameter paths, true inside some modules of a model.

    Args:
        model: an NNX module, a `LinenModel` or a pytree of parameters.
        names: the modules, given as targets: a regex for whole paths, or names that end a path.

    Returns:
        A function of a path, for `is_trained`.

    Raises:
        InputError: a name that nothing in the model has.

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> is_trained = il.parameter_selector({"head": {"w": jnp.ones(2)}, "b": jnp.ones(2)}, ["head"])
    >>> is_trained("head.w"), is_trained("b")
    (True, False)
    """
    return _way(model).parameter_selector(model, names)


def list_parameters(model: PyTree) -> list[str]:
    """List the paths of a model's parameters; the model may be abstract."""
    if isinstance(model, nnx.Module):
        nodes = list_paths(model).items()
        return [path for path, node in nodes if isinstance(node, nnx.Param)]
    _, arrays = model.take_apart() if isinstance(model, LinenModel) else tree.take_apart(model)
    return list(arrays)


def _way(model: PyTree) -> Way:
    if isinstance(model, nnx.Module):
        return modules
    if isinstance(model, Linen):
        raise InputError(
            f"a Linen {type(model).__name__} has no variables of its own. Give "
            "il.LinenModel(module, variables, *inputs)"
        )
    return linen if isinstance(model, LinenModel | AdaptedLinen) else tree

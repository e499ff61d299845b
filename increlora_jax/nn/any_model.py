"""Any model: an NNX module, a Linen module with its variables, or a pytree of parameters.

Each way in has these four functions; the model's type says which are meant.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from increlora_jax.core.adapter import Scaling
from increlora_jax.nn import attach as modules
from increlora_jax.nn import linen, skeleton, tree
from increlora_jax.nn.initial import Start, start_small
from increlora_jax.nn.kernels import stack_names
from increlora_jax.nn.linen import AdaptedLinen, LinenModel
from increlora_jax.nn.skeleton import Parts, Skeleton
from increlora_jax.nn.targets import (
    ALL_LINEAR,
    NO_PARAMETERS,
    IsTrained,
    Parameters,
    Targets,
    leave_trained,
    trains_nothing,
)

DEFAULT_SCALING = Scaling(16.0)
"""α/r with the default α."""


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
    model: Any,
    targets: Targets,
    exclude: Targets = (),
    parameters: Parameters = NO_PARAMETERS,
    is_trained: IsTrained = trains_nothing,
) -> Planned:
    """Find the targets of a model that may be abstract; each matrix of a stack apart, `path[3]`.

    Raises:
        InputError: targets that match nothing, must be declared, or all learn in full; named.
    """
    found = _way(model).find_targets(model, targets, exclude, parameters)
    left = leave_trained(found, is_trained)
    sizes = {
        name: site.axes.matrix_shape(site.shape)
        for path, site in left.items()
        for name in stack_names(path, site.axes.stack_shape(site.shape))
    }
    return Planned(sizes, tuple(path for path in found if path not in left))


def target_sizes(
    model: Any,
    targets: Targets,
    exclude: Targets = (),
    parameters: Parameters = NO_PARAMETERS,
) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of every target as a matrix; see `plan_targets`."""
    return plan_targets(model, targets, exclude, parameters).sizes


def attach(
    model: Any,
    targets: Targets = ALL_LINEAR,
    *,
    exclude: Targets = (),
    parameters: Parameters = NO_PARAMETERS,
    is_trained: IsTrained = trains_nothing,
    max_rank: int | dict[str, int] = 8,
    initial_rank: int = 1,
    scaling: Scaling = DEFAULT_SCALING,
    dropout: float = 0.0,
    rngs: nnx.Rngs | None = None,
    dtype: Any = jnp.float32,
    start: Start = start_small,
) -> Any:
    """Put adapters on a model, in place on an NNX module; outputs stay the same bit for bit.

    Args:
        model: an NNX module, a `LinenModel` or a pytree.
        targets: a regex for whole paths, names that end a path, or "all-linear".
        exclude: what of it to leave out, given in the same way.
        parameters: how other parameters are matrices, by a regex for their path.
        is_trained: a test of parameter paths; kernels that learn in full get no adapter.
        max_rank: slots of a buffer, one number for all or by path.
        initial_rank: active slots of each.
        scaling: the rule for s; default: 16/r.
        dropout: rate on the input of an adapter.
        rngs: draws A and B; default: `nnx.Rngs(0)`.
        dtype: of the adapters.
        start: draws an adapter and its slots; default: λ = 0.

    Raises:
        InputError: targets that match nothing or must be declared, or a rank over a matrix.
    >>> attach({"w": jnp.ones((8, 6))}).adapters["w"].A.shape
    (8, 6)
    """
    adapters: Any = {"max_rank": max_rank, "initial_rank": initial_rank, "scaling": scaling}
    adapters |= {"rngs": rngs or nnx.Rngs(0), "dropout": dropout, "dtype": dtype, "start": start}
    adapters |= {"exclude": exclude, "parameters": parameters, "is_trained": is_trained}
    return _way(model).attach(model, targets, **adapters)


def split(
    model: Any, is_trained: Callable[[str], bool], *, is_called_once: bool = False
) -> tuple[Skeleton, Parts]:
    """Take a model, adapted or not, apart into its skeleton and its arrays.

    `is_trained(path)` says which of its own parameters learn in full; `is_called_once` is for NNX
    modules, see `nn.parts.split`.
    """
    if isinstance(model, nnx.Module):
        return skeleton.split(model, is_trained, is_called_once=is_called_once)
    return _way(model).split(model, is_trained)


def parameter_selector(model: Any, names: Targets) -> Callable[[str], bool]:
    """A test of parameter paths: whether it belongs to one of the modules, said as targets.

    Raises:
        InputError: a name that nothing in the model has.
    """
    return _way(model).parameter_selector(model, names)


def _way(model: Any) -> Any:
    if isinstance(model, nnx.Module):
        return modules
    return linen if isinstance(model, LinenModel | AdaptedLinen) else tree

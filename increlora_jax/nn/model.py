"""Any model: an NNX module, a Linen module with its variables, or a pytree of parameters.

Each way in has these four functions; the model's type says which are meant.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from increlora_jax.core.adapter import Scaling
from increlora_jax.nn import attach as modules
from increlora_jax.nn import linen, parts, tree
from increlora_jax.nn.linen import AdaptedLinen, LinenModel
from increlora_jax.nn.parts import Parts, Skeleton
from increlora_jax.nn.start import Start, start_small
from increlora_jax.nn.targets import ALL_LINEAR, NO_PARAMETERS, Parameters, Targets

DEFAULT_SCALING = Scaling(16.0)
"""α/r with the default α."""


def target_sizes(
    model: Any,
    targets: Targets,
    exclude: Targets = (),
    parameters: Parameters = NO_PARAMETERS,
) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every target as a matrix, each of a stack apart, as `path[3]`.

    Raises:
        InputError: targets that match nothing or must be declared; named.
    """
    return _way(model).target_sizes(model, targets, exclude, parameters)


def attach(
    model: Any,
    targets: Targets = ALL_LINEAR,
    *,
    exclude: Targets = (),
    parameters: Parameters = NO_PARAMETERS,
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
        model: an NNX module, a `LinenModel` or a pytree of parameters.
        targets: a regex for whole paths, names that end a path, or "all-linear".
        exclude: what of it to leave out, given in the same way.
        parameters: how other parameters are matrices, by a regex for their path.
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
    rngs = nnx.Rngs(0) if rngs is None else rngs
    return _way(model).attach(
        model, targets, exclude=exclude, parameters=parameters, max_rank=max_rank, start=start,
        initial_rank=initial_rank, scaling=scaling, dropout=dropout, rngs=rngs, dtype=dtype,
    )  # fmt: skip


def split(
    model: Any, is_trained: Callable[[str], bool], *, is_called_once: bool = False
) -> tuple[Skeleton, Parts]:
    """Take a model, adapted or not, apart into its skeleton and its arrays.

    `is_trained(path)` says which of its own parameters learn in full; `is_called_once` is for NNX
    modules, see `nn.parts.split`.
    """
    if isinstance(model, nnx.Module):
        return parts.split(model, is_trained, is_called_once=is_called_once)
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

"""Any model: an NNX module, a Linen module with its variables, or a pytree of parameters.

Each way in has these four functions; the model's type says which are meant.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx

from increlora_jax.nn import attach as modules
from increlora_jax.nn import linen, parts, tree
from increlora_jax.nn.linen import AdaptedLinen, LinenModel
from increlora_jax.nn.parts import Parts, Skeleton
from increlora_jax.nn.targets import NO_PARAMETERS, Parameters, Targets


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


def attach(model: Any, targets: Targets, **settings: Any) -> Any:
    """Put adapters on a model: on an NNX module in place, beside any other.

    The settings are those of `nn.attach.attach`. Outputs stay the same bit for bit: λ starts at 0.

    Raises:
        InputError: targets that match nothing or must be declared, or a rank over a matrix.
    """
    return _way(model).attach(model, targets, **settings)


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

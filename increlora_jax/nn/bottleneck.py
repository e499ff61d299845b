"""Bottlenecks behind the layers of an NNX model: small networks that begin as the identity."""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from increlora_jax.errors import InputError
from increlora_jax.nn.effective import copy_as, derive
from increlora_jax.nn.initial import INIT_STD
from increlora_jax.nn.kernels import module_order
from increlora_jax.nn.paths import list_paths, replace_nodes
from increlora_jax.nn.targets import Targets, select

BOTTLENECK = "bottleneck"
"""The name of a bottleneck in the module that it follows."""

_FEATURES = ("kernel", "scale", "bias")
"""Parameters whose last axis is as wide as a module's output."""


class Bottleneck(nnx.Module):
    """Network h + f(h · down) · up, with `up` = 0 at the start.

    Args:
        features: of h.
        size: inner width.
        activation: f.
        dtype: of the parameters.
        rngs: draws `down`.
    """

    def __init__(
        self,
        features: int,
        size: int,
        activation: Callable[[Array], Array],
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        small, zeros = nnx.initializers.normal(INIT_STD), nnx.initializers.zeros
        own: Any = {"param_dtype": dtype, "rngs": rngs}
        self.down = nnx.Linear(features, size, kernel_init=small, **own)
        self.up = nnx.Linear(size, features, kernel_init=zeros, **own)
        self.activation = activation

    def __call__(self, h: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        """Compute the network, in the dtype of h."""
        return h + self.up(self.activation(self.down(h))).astype(h.dtype)


class _Followed(nnx.Module):
    """Module whose output goes through a bottleneck; it has the names of the module it replaces."""

    bottleneck: Bottleneck

    def __call__(self, *args: Any, **options: Any) -> Array:
        """Call the module, then the bottleneck."""
        output: Array = super().__call__(*args, **options)
        return self.bottleneck(output)


def add_bottlenecks(
    model: nnx.Module,
    places: list[str],
    size: int,
    activation: Callable[[Array], Array],
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Put a bottleneck behind modules of a model, in place, and return the model.

    Args:
        model: an NNX module.
        places: the paths of the modules.
        size: inner width of every bottleneck.
        activation: the function between its layers.
        dtype: of the new parameters.
        rngs: draws them.
    """
    nodes: dict[str, Any] = dict(list_paths(model))
    replacements = {}
    for path in places:
        module: nnx.Module = nodes[path]
        followed = copy_as(_followed_type(type(module)), module)
        options: Any = {"dtype": dtype, "rngs": rngs}
        followed.bottleneck = Bottleneck(_features(path, module), size, activation, **options)
        replacements[id(module)] = followed
    return replace_nodes(model, replacements)


@cache
def _followed_type(kind: type) -> type[_Followed]:
    return cast(type[_Followed], derive(kind, "Followed", (_Followed, kind), {}))


def find_places(model: nnx.Module, targets: Targets, exclude: Targets) -> dict[str, int]:
    """Return the features of the modules that bottlenecks follow, by path in module order.

    Raises:
        InputError: a regex or a name that matches nothing, or a module of unknown width.
    """
    nodes = list_paths(model)
    modules = [path for path, node in nodes.items() if path and isinstance(node, nnx.Module)]
    ordered = sorted(modules, key=module_order)
    chosen = select(ordered, targets, "target_modules", "module")
    if exclude:
        chosen -= select(ordered, exclude, "exclude_modules", "module")
    if not chosen:
        raise InputError(
            f"exclude_modules: {exclude!r} leaves none of the targets {targets!r}. Exclude fewer"
        )
    return {path: _features(path, nodes[path]) for path in ordered if path in chosen}


def _features(path: str, module: Any) -> int:
    for name in _FEATURES:
        held = getattr(module, name, None)
        if isinstance(held, nnx.Variable):
            return int(held.get_value().shape[-1])
    raise InputError(
        f"target_modules: {path}, a {type(module).__name__}, does not say how wide its output is. "
        "Name layers with a kernel or a scale"
    )


def is_bottleneck(path: str) -> bool:
    """Return whether a parameter belongs to a bottleneck, by its path."""
    return f".{BOTTLENECK}." in path

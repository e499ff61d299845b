"""Adapters as small networks between layers: Houlsby's (1902.00751) and Pfeiffer's (2005.00247)."""

from collections.abc import Callable
from typing import Unpack

import jax
from flax import nnx
from jaxtyping import Array, PyTree

from increlora_jax.config import BottleneckConfig
from increlora_jax.errors import InputError
from increlora_jax.methods import base
from increlora_jax.nn.bottleneck import add_bottlenecks, find_places, is_bottleneck


def houlsby(
    model: PyTree,
    *,
    steps: int | None = None,
    config: BottleneckConfig = BottleneckConfig(),
    **given: Unpack[base.Arguments],
) -> base.Method:
    """Return Houlsby's adapters: a bottleneck behind the attention and the feed-forward part.

    h ← h + gelu(h · D + b) · U + c, before the residual connection, with U = 0 at the start.

    Args:
        model: an NNX module, which may be abstract.
        steps: optimizer steps of the run, which are not used; default None.
        config: the inner width; default: 16.
        **given: `targets` are the layers that bottlenecks follow, by default those of a run's
            model; see `methods.base.Arguments`.

    Returns:
        The method; nothing is attached yet.

    Raises:
        InputError: targets that match nothing, or a model that is no NNX module.

    >>> import increlora_jax as il
    >>> model = nnx.Sequential(nnx.Linear(4, 6, rngs=nnx.Rngs(0)))
    >>> il.houlsby(model, targets=["layers.0"]).description
    '1 bottleneck of width 16, 214 parameters'
    """
    return _method("houlsby", model, config, jax.nn.gelu, base.read_arguments(**given))


def pfeiffer(
    model: PyTree,
    *,
    steps: int | None = None,
    config: BottleneckConfig = BottleneckConfig(),
    **given: Unpack[base.Arguments],
) -> base.Method:
    """Return Pfeiffer's adapters: one bottleneck a layer, behind its last layer norm.

    h ← h + relu(h · D + b) · U + c with U = 0 at the start. Where a layer does not end with a
    norm, the bottleneck follows the feed-forward part.

    Args:
        model: an NNX module, which may be abstract.
        steps: optimizer steps of the run, which are not used; default None.
        config: the inner width; default: 16.
        **given: `targets` are the layers that bottlenecks follow, by default those of a run's
            model; see `methods.base.Arguments`.

    Returns:
        The method; nothing is attached yet.

    Raises:
        InputError: targets that match nothing, or a model that is no NNX module.

    >>> import increlora_jax as il
    >>> model = nnx.Sequential(nnx.LayerNorm(6, rngs=nnx.Rngs(0)))
    >>> il.pfeiffer(model, targets=["layers.0"]).name
    'pfeiffer'
    """
    return _method("pfeiffer", model, config, jax.nn.relu, base.read_arguments(**given))


def _method(
    name: str,
    model: PyTree,
    config: BottleneckConfig,
    activation: Callable[[Array], Array],
    asked: base.Asked,
) -> base.Method:
    if not isinstance(model, nnx.Module):
        raise InputError(f"{name}: bottlenecks need an NNX module, whose layers can be called")
    chosen = base.choose_places(
        model, asked.targets, asked.exclude, asked.is_trained, asked.adapter
    )
    features = find_places(model, chosen.targets, chosen.exclude)
    size = config.adapter_size
    count = sum(2 * size * width + size + width for width in features.values())
    many = "bottleneck" if len(features) == 1 else "bottlenecks"
    return base.fixed_method(
        name,
        f"{len(features)} {many} of width {size}, {count:,} parameters",
        attach=lambda model, rngs: add_bottlenecks(
            model, list(features), size, activation, dtype=asked.dtype, rngs=rngs
        ),
        is_trained=lambda path: is_bottleneck(path) or chosen.is_trained(path),
    )

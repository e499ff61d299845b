"""The head alone on a frozen base: what the pretrained features give without adapting them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.errors import InputError
from increlora_jax.methods import base
from increlora_jax.nn.targets import NO_PARAMETERS, Parameters, Targets, trains_nothing


def head(
    model: Any,
    *,
    steps: int | None = None,
    targets: Targets | None = None,
    exclude: Targets | None = None,
    parameters: Parameters = NO_PARAMETERS,
    adapter: AdapterConfig = AdapterConfig(),
    growth: GrowthConfig = GrowthConfig(),
    is_trained: Callable[[str], bool] | None = None,
    dtype: Any = jnp.float32,
) -> base.Method:
    """Attach nothing, train only `is_trained(path)`, or the configuration's `modules_to_save`.

    The other arguments are those of `increlora`, so that methods swap; they change nothing.

    Raises:
        InputError: nothing would be trained, or modules to save that `model` does not have.

    >>> import increlora_jax as il
    >>> params = {"body": jnp.ones((4, 4)), "head": jnp.ones((4, 2))}
    >>> method = il.head(params, adapter=il.AdapterConfig(modules_to_save=["head"]))
    >>> method.is_trained("head"), method.is_trained("body")
    (True, False)
    """
    chosen = base.choose_places(model, targets, exclude, is_trained, adapter)
    if chosen.is_trained is trains_nothing:
        raise InputError("head: nothing would be trained. Give is_trained or modules_to_save")
    return base.fixed_method(
        "head",
        "the head on a frozen base",
        attach=lambda model, rngs: model,
        is_trained=chosen.is_trained,
    )

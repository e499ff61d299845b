"""Full fine-tuning: every parameter of the model learns."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.methods import base
from increlora_jax.nn.targets import NO_PARAMETERS, Parameters, Targets


def full(
    model: Any = None,
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
    """Attach nothing, train everything.

    The arguments are those of `increlora`, so that methods swap; none of them changes anything.

    Raises:
        InputError: modules to save that `model` does not have.

    >>> import increlora_jax as il
    >>> il.full().description
    'every parameter of the model'
    """
    if model is not None:
        base.choose_places(model, targets, exclude, is_trained, adapter)
    return base.fixed_method(
        "full",
        "every parameter of the model",
        attach=lambda model, rngs: model,
        is_trained=lambda path: True,
    )

"""The head alone on a frozen base: what the pretrained features give without adapting them."""

from typing import Any, Unpack

from increlora_jax.errors import InputError
from increlora_jax.methods import base
from increlora_jax.nn.targets import trains_nothing


def head(
    model: Any,
    *,
    steps: int | None = None,
    **given: Unpack[base.Arguments],
) -> base.Method:
    """Attach nothing, train only `is_trained(path)`, or the configuration's `modules_to_save`.

    The other arguments are those of `increlora`, so that methods swap; they change nothing.

    Raises:
        InputError: nothing would be trained, or modules to save that `model` does not have.

    >>> import increlora_jax as il
    >>> import jax.numpy as jnp
    >>> params = {"body": jnp.ones((4, 4)), "head": jnp.ones((4, 2))}
    >>> method = il.head(params, adapter=il.AdapterConfig(modules_to_save=["head"]))
    >>> method.is_trained("head"), method.is_trained("body")
    (True, False)
    """
    is_trained = base.read_arguments(**given).places(model)["is_trained"]
    if is_trained is trains_nothing:
        raise InputError("head: nothing would be trained. Give is_trained or modules_to_save")
    return base.fixed_method(
        "head",
        "the head on a frozen base",
        attach=lambda model, rngs: model,
        is_trained=is_trained,
    )

"""The head alone on a frozen base: the worth of the pretrained features without adapters."""

from typing import Unpack

from jaxtyping import PyTree

from increlora_jax.errors import InputError
from increlora_jax.methods import base
from increlora_jax.nn.targets import trains_nothing


def head(
    model: PyTree,
    *,
    steps: int | None = None,
    **given: Unpack[base.Arguments],
) -> base.Method:
    """Return the training of a head alone: no adapters, and a frozen base.

    Args:
        model: an NNX module, which may be abstract, a `LinenModel` or a pytree of parameters.
        steps: optimizer steps of the run, which are not used; default None.
        **given: `is_trained` or `adapter` with `modules_to_save`; see `methods.base.Arguments`.

    Returns:
        The method; nothing is attached yet.

    Raises:
        InputError: nothing would be trained, or `model` has no such modules to save.

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

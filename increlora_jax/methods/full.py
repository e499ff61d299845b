"""Full fine-tuning: every parameter of the model learns."""

from typing import Unpack

from jaxtyping import PyTree

from increlora_jax.methods import base


def full(
    model: PyTree = None,
    *,
    steps: int | None = None,
    **given: Unpack[base.Arguments],
) -> base.Method:
    """Return full fine-tuning: no adapters, every parameter learns.

    Args:
        model: an NNX module, which may be abstract, a `LinenModel` or a pytree; default None.
        steps: optimizer steps of the run, which are not used; default None.
        **given: targets and settings, which are only checked; see `methods.base.Arguments`.

    Returns:
        The method; nothing is attached yet.

    Raises:
        InputError: `model` has no such modules to save.

    >>> import increlora_jax as il
    >>> il.full().description
    'every parameter of the model'
    """
    asked = base.read_arguments(**given)
    if model is not None:
        asked.places(model)
    return base.fixed_method(
        "full",
        "every parameter of the model",
        attach=lambda model, rngs: model,
        is_trained=lambda path: True,
    )

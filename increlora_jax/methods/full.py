"""Full fine-tuning: every parameter of the model learns."""

from typing import Any, Unpack

from increlora_jax.methods import base


def full(
    model: Any = None,
    *,
    steps: int | None = None,
    **given: Unpack[base.Arguments],
) -> base.Method:
    """Attach nothing, train everything.

    The arguments are those of `increlora`, so that methods swap; none of them changes anything.

    Raises:
        InputError: modules to save that `model` does not have.

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

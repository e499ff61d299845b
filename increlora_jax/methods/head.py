"""The head alone on a frozen base: what the pretrained features give without adapting them."""

from collections.abc import Callable

from increlora_jax.methods import base


def head(is_trained: Callable[[str], bool]) -> base.Method:
    """Attach nothing, train only the modules that `is_trained(path)` names."""
    return base.fixed_method(
        "head",
        "the head on a frozen base",
        attach=lambda model, rngs: model,
        is_trained=is_trained,
    )

"""Full fine-tuning: every parameter of the model learns."""

from increlora_jax.methods import base


def full() -> base.Method:
    """Attach nothing, train everything."""
    return base.fixed_method(
        "full",
        "every parameter of the model",
        attach=lambda model, rngs: model,
        is_trained=lambda path: True,
    )

"""BitFit: the biases of a frozen model learn, and nothing else (arXiv 2106.10199)."""

from typing import Unpack

from jaxtyping import PyTree

from increlora_jax.errors import InputError
from increlora_jax.methods import base
from increlora_jax.nn.any_model import list_parameters

BIAS = "bias"
"""The last name in the path of a bias."""


def bitfit(
    model: PyTree,
    *,
    steps: int | None = None,
    **given: Unpack[base.Arguments],
) -> base.Method:
    """Return BitFit: every bias learns, those of layer norms too, and the modules to save.

    Args:
        model: an NNX module, which may be abstract, a `LinenModel` or a pytree of parameters.
        steps: optimizer steps of the run, which are not used; default None.
        **given: `is_trained` or `adapter` with `modules_to_save`; see `methods.base.Arguments`.

    Returns:
        The method; nothing is attached yet.

    Raises:
        InputError: the model has no biases, or no such modules to save.

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> params = {"body": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
    >>> method = il.bitfit(params)
    >>> method.is_trained("body.bias"), method.is_trained("body.kernel")
    (True, False)
    """
    is_trained = base.read_arguments(**given).places(model)["is_trained"]
    if not any(map(_is_bias, list_parameters(model))):
        raise InputError(
            f"bitfit: the model has no parameter whose path ends in {BIAS}. Choose another method"
        )
    return base.fixed_method(
        "bitfit",
        "the biases of a frozen base",
        attach=lambda model, rngs: model,
        is_trained=lambda path: _is_bias(path) or is_trained(path),
    )


def _is_bias(path: str) -> bool:
    return path.rpartition(".")[2] == BIAS

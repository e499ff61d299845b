"""DoRA: LoRA for the direction of every kernel, beside lengths that learn (arXiv 2402.09353)."""

from typing import Unpack

from flax import nnx
from jaxtyping import PyTree

from increlora_jax.errors import InputError
from increlora_jax.methods import base
from increlora_jax.methods.lora import lora
from increlora_jax.nn.dora import add_magnitudes, is_magnitude


def dora(
    model: PyTree,
    *,
    steps: int | None = None,
    **given: Unpack[base.Arguments],
) -> base.Method:
    """Return DoRA of rank r: W' = m ∘ (W + s · A B) / ‖W + s · A B‖, by columns.

    m, the length of every column, is ‖W‖ at the start and learns. A, B and s are LoRA's.

    Args:
        model: an NNX module, which may be abstract.
        steps: optimizer steps of the run, which are not used; default None.
        **given: targets and settings; r is `growth.target_rank`; see `methods.base.Arguments`.

    Returns:
        The method; nothing is attached yet.

    Raises:
        InputError: no NNX module, targets that match nothing, or a rank that is not whole.

    >>> import increlora_jax as il
    >>> model = nnx.Sequential(nnx.Linear(4, 6, rngs=nnx.Rngs(0)))
    >>> il.dora(model).description
    '1 modules of rank 2, with lengths that learn'
    """
    if not isinstance(model, nnx.Module):
        raise InputError("dora: the lengths need an NNX module, whose layers can be called")
    if given.get("initial_ranks"):
        raise InputError("--init-adapter is not for --method dora. Choose increlora or lora")
    directions = lora(model, steps=steps, **given)
    return directions._replace(
        name="dora",
        description=f"{directions.description}, with lengths that learn",
        attach=lambda model, rngs: add_magnitudes(directions.attach(model, rngs)),
        is_trained=lambda path: is_magnitude(path) or directions.is_trained(path),
    )

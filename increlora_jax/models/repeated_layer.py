"""The layer that a model repeats: what of it is computed again, looped over, or left out."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from increlora_jax.models.taking import Take, take_all

Remat = Literal["none", "dots", "full"]
"""What is computed again: nothing, all but products with a kernel, everything within a layer."""

_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class RepeatedLayer(nnx.Module):
    """One of the repeated layers of a model.

    Attributes:
        apply: computes the layer, of the states that it changes and of what it looks at. Once its
            tokens have seen each other it goes on with those that `take` takes.
        remat: what of that is computed again.
        is_scanned: whether it may be one pass of a loop over layers (`layer_loop`).
    """

    apply: ClassVar[Callable[..., Any]]
    remat: Remat = "none"
    is_scanned: bool = False

    def __call__(
        self, hidden: Float[Array, "batch length hidden"], *seen: Any, take: Take = take_all
    ) -> Any:
        """Compute the layer, and as much of it again in the backward pass as `remat` says."""
        if self.remat == "none":
            return self.apply(hidden, *seen, take=take)

        # What is seen stays outside: some of it is no array, and what is, is there anyway.
        def apply(layer: RepeatedLayer, hidden: Array) -> Any:
            return layer.apply(hidden, *seen, take=take)

        return nnx.remat(apply, policy=_POLICIES[self.remat])(self, hidden)


def set_remat(model: nnx.Module, remat: Remat) -> None:
    """Say for every layer of a model what is computed again, in place."""
    if remat != "none":
        model.set_attributes(RepeatedLayer, remat=remat)

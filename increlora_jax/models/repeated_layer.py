"""Repeated layer of a model: recomputation, looping over layers, leaving out tokens."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from increlora_jax.models.taking import Take, take_all

Remat = Literal["none", "dots", "full"]
"""Recomputed parts of a layer: none, all but products with a kernel, everything."""

_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class RepeatedLayer(nnx.Module):
    """One of the repeated layers of a model.

    Attributes:
        apply: Computes the layer from the states that it changes and its further inputs. After the
            tokens have seen each other, only those that `take` takes are computed.
        remat: The parts of `apply` that are recomputed in the backward pass.
        is_scanned: Whether the layer may be one pass of a loop over layers (`layer_loop`).
    """

    apply: ClassVar[Callable[..., Any]]
    remat: Remat = "none"
    is_scanned: bool = False

    def __call__(
        self, hidden: Float[Array, "batch length hidden"], *seen: Any, take: Take = take_all
    ) -> Any:
        """Compute the layer, with recomputation in the backward pass as `remat` says."""
        if self.remat == "none":
            return self.apply(hidden, *seen, take=take)

        # Further inputs are closed over: some are no arrays, and the arrays are kept anyway.
        def apply(layer: RepeatedLayer, hidden: Array) -> Any:
            return layer.apply(hidden, *seen, take=take)

        return nnx.remat(apply, policy=_POLICIES[self.remat])(self, hidden)


def set_remat(model: nnx.Module, remat: Remat) -> None:
    """Set the recomputed parts of every layer of a model, in place."""
    if remat != "none":
        model.set_attributes(RepeatedLayer, remat=remat)

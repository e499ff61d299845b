"""Repeated layer of a model: recomputation, looping over layers, leaving out tokens."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from increlora_jax.models.taking import Take, take_all
from increlora_jax.weights.folder import name_variables

Remat = Literal["none", "dots", "full"]
"""Recomputed parts of a layer: none, all but products with a kernel, everything."""

_GATHERED = "gathered"

_POLICIES = {
    "none": jax.checkpoint_policies.save_anything_except_these_names(_GATHERED),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

Places = tuple[tuple[str, tuple[NamedSharding, ...]], ...]
"""The shardings in which parameters are used, by their paths; one for each array of a parameter."""


class RepeatedLayer(nnx.Module):
    """One of the repeated layers of a model.

    Attributes:
        apply: Computes the layer from the states that it changes and its further inputs. After the
            tokens have seen each other, only those that `take` takes are computed.
        remat: The parts of `apply` that are recomputed in the backward pass.
        is_scanned: Whether the layer may be one pass of a loop over layers (`layer_loop`).
        places: Shardings that the layer brings its own arrays into while it uses them, by their
            paths in the layer; in the backward pass again. So one layer's arrays are whole at a
            time, where a mesh shards them all.
    """

    apply: ClassVar[Callable[..., Any]]
    remat: Remat = "none"
    is_scanned: bool = False
    places: Places = ()

    def __call__(
        self, hidden: Float[Array, "batch length hidden"], *seen: Any, take: Take = take_all
    ) -> Any:
        """Compute the layer, with recomputation in the backward pass as `remat` says."""
        if self.remat == "none" and not self.places:
            return self.apply(hidden, *seen, take=take)

        # Further inputs are closed over: some are no arrays, and the arrays are kept anyway.
        def apply(layer: RepeatedLayer, hidden: Array) -> Any:
            with layer.gathered(hidden):
                return layer.apply(hidden, *seen, take=take)

        return nnx.remat(apply, policy=_POLICIES[self.remat])(self, hidden)

    @contextmanager
    def gathered(self, hidden: Array) -> Iterator[None]:
        """Bring the layer's arrays into their places meanwhile, not before `hidden` is there."""
        places = dict(self.places)
        own = {p: v for p, v in name_variables(self, nnx.Param).items() if p in places}
        held = {path: variable.get_value() for path, variable in own.items()}
        tied, _ = jax.lax.optimization_barrier((held, hidden))
        for path, variable in own.items():
            leaves, structure = jax.tree.flatten(tied[path])
            moved = map(jax.lax.with_sharding_constraint, leaves, places[path])
            named = [checkpoint_name(leaf, _GATHERED) for leaf in moved]
            variable.set_value(jax.tree.unflatten(structure, named))
        try:
            yield
        finally:
            for path, variable in own.items():
                variable.set_value(held[path])


def set_remat(model: nnx.Module, remat: Remat) -> None:
    """Set the recomputed parts of every layer of a model, in place."""
    if remat != "none":
        model.set_attributes(RepeatedLayer, remat=remat)


def set_places(model: nnx.Module, places: Mapping[str, Any]) -> None:
    """Let every layer of a model bring its parameters into places while it uses them, in place.

    Args:
        model: The model.
        places: The shardings of the arrays of each parameter by its path in the model.
    """
    for path, layer in name_layers(model).items():
        found = {own: places.get(f"{path}.{own}") for own in name_variables(layer, nnx.Param)}
        layer.places = tuple((n, tuple(jax.tree.leaves(f))) for n, f in found.items() if f)


def layer_parameters(model: nnx.Module) -> dict[str, Any]:
    """Return the parameters inside of a model's repeated layers, without those of adapters."""
    return {
        f"{path}.{own}": variable.get_value()
        for path, layer in name_layers(model).items()
        for own, variable in name_variables(layer, nnx.Param).items()
        if not isinstance(variable, nnx.LoRAParam)
    }


def name_layers(model: nnx.Module) -> dict[str, RepeatedLayer]:
    """Return a model's repeated layers by dotted path."""
    return {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, RepeatedLayer)
    }

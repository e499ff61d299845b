"""Repeated layers of a model, unrolled or as the body of a loop."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from increlora_jax.models.repeated_layer import RepeatedLayer
from increlora_jax.models.taking import Take, take_all


def apply_layers(
    layers: Sequence[RepeatedLayer],
    hidden: Float[Array, "batch length hidden"],
    *seen: Any,
    own: Sequence[Any] | None = None,
    take: Take = take_all,
) -> tuple[Float[Array, "rows taken hidden"], list[Any]]:
    """Apply every layer to the previous layer's output.

    Adjacent scanned layers that differ only in their arrays become the body of one loop. The last
    layer computes only the taken states, unless it is a pass of a loop.

    Args:
        layers: The layers.
        hidden: The states, [batch, length, hidden].
        seen: Further inputs, the same for all layers.
        own: An additional input for each layer.
        take: Takes the states that are needed after the last layer.

    Returns:
        The taken states, and the list of the layers' further outputs.
    """
    left: list[Any] = []
    is_taken = False
    each = [()] * len(layers) if own is None else [(one,) for one in own]
    for first, alike in _find_runs(layers):
        of_run = each[first : first + len(alike)]
        if len(alike) > 1:
            hidden, leaves = _scan(alike, hidden, seen, of_run)
        else:
            is_taken = first == len(layers) - 1
            taken = take if is_taken else take_all
            hidden, leaf = _apply(alike[0], hidden, *seen, *of_run[0], take=taken)
            leaves = [leaf]
        left += leaves
    return hidden if is_taken else take(hidden), left


def set_scanned(model: nnx.Module) -> None:
    """Let every layer of a model be scanned if possible, in place."""
    model.set_attributes(RepeatedLayer, is_scanned=True)


def _find_runs(layers: Sequence[RepeatedLayer]) -> Iterator[tuple[int, list[RepeatedLayer]]]:
    """Yield the place of the first layer and the layers of each run that one loop can scan."""

    def kind(place: int) -> Any:
        if not layers[place].is_scanned:
            return place
        graphdef, state = nnx.split(layers[place])
        return graphdef, [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]

    for _, places in groupby(range(len(layers)), key=kind):
        run = list(places)
        yield run[0], [layers[place] for place in run]


def _scan(
    layers: list[RepeatedLayer],
    hidden: Array,
    seen: tuple[Any, ...],
    own: Sequence[tuple[Any, ...]],
) -> tuple[Array, list[Any]]:
    graphdef = nnx.graphdef(layers[0])

    def body(hidden: Array, one: Any) -> tuple[Array, Any]:
        state, own = one
        return _apply(nnx.merge(graphdef, state), hidden, *seen, *own)

    stacked = _stack([(nnx.state(layer), each) for layer, each in zip(layers, own, strict=True)])
    hidden, left = jax.lax.scan(body, hidden, stacked)
    return hidden, [jax.tree.map(lambda x, i=i: x[i], left) for i in range(len(layers))]


def _apply(
    layer: RepeatedLayer, hidden: Array, *looked_at: Any, take: Take = take_all
) -> tuple[Array, Any]:
    made = layer(hidden, *looked_at, take=take)
    return made if isinstance(made, tuple) else (made, None)


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

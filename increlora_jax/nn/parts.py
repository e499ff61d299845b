"""A model taken apart into plain dictionaries by path, and put together again inside a step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from increlora_jax.core.adapter import Adapter, Score, Slots
from increlora_jax.nn.attach import adapted_layers
from increlora_jax.nn.layers import AdapterParam, SlotState


class Parts(NamedTuple):
    """All arrays of a model: what learns, what steers the growth, and the frozen rest."""

    adapters: dict[str, Adapter]
    slots: dict[str, Slots]
    head: dict[str, Array]
    base: dict[str, Array]

    def learned(self) -> dict[str, Array]:
        """Everything but the base, by the path it has in the model."""
        flat = dict(self.head)
        for group in (self.adapters, self.slots):
            for module, fields in group.items():
                flat.update({f"{module}.adapter.{n}": v for n, v in fields._asdict().items()})
        return flat


class Skeleton(NamedTuple):
    """A model without its arrays: static, hashable by identity, closed over by jitted functions."""

    graphdef: Any
    paths: dict[str, tuple[Any, ...]]  # every variable but the random streams
    streams: dict[str, tuple[Any, ...]]  # the random streams' keys and counts
    modules: tuple[str, ...]  # the adapted layers in module order

    def assemble(
        self,
        parts: Parts,
        key: Array | None = None,
        probes: dict[str, Array] | None = None,
        score: Score | None = None,
    ) -> nnx.Module:
        """Make the model whole: training with dropout from `key`, or evaluating without one."""
        model = nnx.merge(self.graphdef, nnx.from_flat_state(self._leaves(parts, key)))
        for path, layer in adapted_layers(model).items():
            layer.adapter.score = score
            layer.adapter.probe = nnx.data(probes[path] if probes else None)
        if key is None:
            model.eval()
        else:
            model.train()
        return model

    def _leaves(self, parts: Parts, key: Array | None) -> dict[tuple[Any, ...], Array]:
        flat = {**parts.base, **parts.learned()}
        leaves = {path: flat[name] for name, path in self.paths.items()}
        root = jax.random.key(0) if key is None else key
        for index, path in enumerate(self.streams.values()):
            is_key = path[-1] == "key"
            leaves[path] = jax.random.fold_in(root, index) if is_key else jnp.zeros((), jnp.uint32)
        return leaves


def split(model: nnx.Module, is_trained: Callable[[str], bool]) -> tuple[Skeleton, Parts]:
    """Take a model apart; `is_trained(path)` says which of its own parameters learn in full.

    Random streams are left out: every step makes them anew from its key.
    """
    graphdef, state = nnx.split(model)
    variables = {".".join(map(str, path)): (path, v) for path, v in nnx.to_flat_state(state)}
    streams = {n: path for n, (path, v) in variables.items() if isinstance(v, nnx.RngState)}
    paths = {name: path for name, (path, _) in variables.items() if name not in streams}
    modules = tuple(adapted_layers(model))
    head: dict[str, Array] = {}
    base: dict[str, Array] = {}
    for name in paths:
        variable = variables[name][1]
        if not isinstance(variable, AdapterParam | SlotState):
            value = variable.get_value()
            if isinstance(variable, nnx.Param) and is_trained(name):
                # Of a bf16 model, what learns is kept in float32: small steps must not round away.
                head[name] = value.astype(jnp.promote_types(value.dtype, jnp.float32))
            else:
                base[name] = value
    layers = adapted_layers(model)
    parts = Parts(
        {name: layer.adapter.parameters for name, layer in layers.items()},
        {name: layer.adapter.slots for name, layer in layers.items()},
        head,
        base,
    )
    return Skeleton(graphdef, paths, streams, modules), parts

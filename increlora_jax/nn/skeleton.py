"""A model taken apart into plain dictionaries by path, and put together again inside a step."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from increlora_jax.core.adapter import Adapter, Scaling, Slots, Update, effective_update
from increlora_jax.core.probe import Probe, spread_probe
from increlora_jax.core.stacking import by_name
from increlora_jax.errors import InputError
from increlora_jax.nn.attach import adapters_of, detach, merge
from increlora_jax.nn.kernels import KernelAxes, stack_names
from increlora_jax.nn.low_rank import AdapterParam, SlotState
from increlora_jax.nn.modes import switch_to_training
from increlora_jax.nn.parameters import ParameterAdapter
from increlora_jax.nn.paths import name_nodes
from increlora_jax.nn.rules import Rules, make_rules
from increlora_jax.nn.statistics import read_statistics, snapshot
from increlora_jax.nn.targets import learns
from increlora_jax.quantization import as_dense

NO_PROBES: Mapping[str, Probe] = MappingProxyType({})


class Parts(NamedTuple):
    """All arrays of a model: what learns, steers the growth, is measured, and the frozen rest."""

    adapters: dict[str, Adapter]
    slots: dict[str, Slots]
    head: dict[str, Array]
    base: dict[Any, Array]  # by path; or all of it in stacks, by the paths of each (`core.groups`)
    # Written by the forward pass, such as a BatchNorm's; nothing changes the default.
    statistics: dict[str, Array] = {}  # noqa: RUF012
    rules: Rules | None = None  # None if nothing is known of them
    scales: dict[str, Array] = {}  # noqa: RUF012  # s of a module, if the rules are not to say it

    def update_of(self, path: str, scaling: Scaling) -> Update:
        """Return the update of an adapter; `scaling` is its rule for s."""
        own = self.scales.get(path, scaling)
        return effective_update(self.adapters[path], self.slots[path], own)

    def frozen(self) -> dict[str, Array]:
        """The base by the path it has in the model."""
        return by_name(self.base)

    def learned(self) -> dict[str, Array]:
        """Everything but the base, by the path it has in the model."""
        flat = {**self.head, **self.statistics}
        for group in (self.adapters, self.slots):
            for module, fields in group.items():
                flat.update({f"{module}.adapter.{n}": v for n, v in fields._asdict().items()})
        return flat


@runtime_checkable
class Skeleton(Protocol):
    """A model without its arrays: static, hashable by identity, closed over by jitted functions."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The adapted modules in order; the matrices of a stack are `path[0]` and so on."""

    @property
    def rules(self) -> Rules | None:
        """The rules by which the adapters are applied; see `make_rules`."""

    def assemble(
        self,
        parts: Parts,
        key: Array | None = None,
        probes: Mapping[str, Probe] = NO_PROBES,
    ) -> Any:
        """Make the model whole: training with dropout from `key`, or evaluating without one.

        `probes` by adapter: the parts of the backward pass to read, see `core.probe`.
        """

    def snapshot(self, model: Any) -> Any:
        """Note what a forward pass of an assembled model could write, as it is before."""

    def read_statistics(self, model: Any, parts: Parts, before: Any) -> dict[str, Array]:
        """Read what the forward pass of a model, assembled of `parts`, left of its statistics.

        A warning names whatever else it wrote since the snapshot `before`.
        """

    def merge(self, parts: Parts) -> Any:
        """Make a plain model of the user's own kind, every update in its kernel."""


class ModuleSkeleton(NamedTuple):
    """The skeleton of an NNX model."""

    graphdef: Any
    paths: dict[str, tuple[Any, ...]]  # every variable but the random streams
    streams: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]]  # their keys' and counts' shapes
    modules: tuple[str, ...]
    is_called_once: bool = False  # every adapted layer, in a forward pass
    scaling: Scaling | None = None  # the adapters' own
    axes: Mapping[str, KernelAxes] = MappingProxyType({})  # of adapted parameters

    @property
    def rules(self) -> Rules | None:
        """The rules by which the adapters are applied; see `make_rules`."""
        return make_rules(self.scaling, self.axes)

    def assemble(
        self,
        parts: Parts,
        key: Array | None = None,
        probes: Mapping[str, Probe] = NO_PROBES,
    ) -> nnx.Module:
        """Make the model whole; see `Skeleton`."""
        model = nnx.merge(self.graphdef, nnx.from_flat_state(self._leaves(parts, key)))
        adapters = adapters_of(model)
        for path, scale in parts.scales.items():
            adapters[path].scale = SlotState(scale)
        for path, probe in probes.items():
            own = adapters[path]
            is_one_use = self.is_called_once and not isinstance(own, ParameterAdapter)
            own.probe = nnx.data(probe if is_one_use else spread_probe(probe, own.update))
        if key is None:
            model.eval()
        else:
            switch_to_training(model)
        return model

    def snapshot(self, model: nnx.Module) -> dict[str, Any]:
        """Note what could be written; see `Skeleton`."""
        return snapshot(model)

    def read_statistics(self, model: nnx.Module, parts: Parts, before: Any) -> dict[str, Array]:
        """Read the statistics; see `Skeleton`."""
        return read_statistics(model, parts.statistics, before, parts.head)

    def merge(self, parts: Parts) -> nnx.Module:
        """Make a plain NNX model, whose kernels are plain too."""
        base = {path: as_dense(value) for path, value in parts.frozen().items()}
        return detach(merge(self.assemble(parts._replace(base=base))))

    def _leaves(self, parts: Parts, key: Array | None) -> dict[tuple[Any, ...], Array]:
        flat = {**parts.frozen(), **parts.learned()}
        leaves = {path: _as_leaf(flat[name]) for name, path in self.paths.items()}
        root = jax.random.key(0) if key is None else key
        for index, (path, shape) in enumerate(self.streams.values()):
            own = jax.random.fold_in(root, index)
            if path[-1] != "key":
                leaves[path] = jnp.zeros(shape, jnp.uint32)
            else:
                leaves[path] = jax.random.split(own, shape) if shape else own
        return leaves


def split(
    model: nnx.Module, is_trained: Callable[[str], bool], *, is_called_once: bool = False
) -> tuple[ModuleSkeleton, Parts]:
    """Take a model apart; `is_trained(path)` says which of its own parameters learn in full.

    `is_called_once` says that a forward pass calls every adapted layer once. The backward pass then
    scores a layer where it comes to it, and holds no more than one dense gradient at a time; those
    of a layer that is called several times must be summed before they are scored.
    Random streams are left out: every step makes them anew from its key.
    """
    graphdef, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    variables, places = name_nodes(flat), name_nodes((path, path) for path, _ in flat)
    streams = {
        name: (places[name], variable.get_value().shape)
        for name, variable in variables.items()
        if isinstance(variable, nnx.RngState)
    }
    paths = {name: path for name, path in places.items() if name not in streams}
    own = {n: v for n, v in variables.items() if n in paths and not _is_adapter(v)}
    head = {name: _widen(v.get_value()) for name, v in own.items() if _learns(name, v, is_trained)}
    measured = {n: v.get_value() for n, v in own.items() if isinstance(v, nnx.BatchStat)}
    base = {n: _value_of(v) for n, v in own.items() if n not in head and n not in measured}
    adapters = adapters_of(model)
    slots = {name: adapter.slots for name, adapter in adapters.items()}
    skeleton = ModuleSkeleton(
        graphdef,
        paths,
        streams,
        module_names(slots),
        is_called_once,
        scaling=next((adapter.scaling for adapter in adapters.values()), None),
        axes={n: own.axes for n, own in adapters.items() if isinstance(own, ParameterAdapter)},
    )
    own_parameters = {name: adapter.parameters for name, adapter in adapters.items()}
    return skeleton, Parts(own_parameters, slots, head, base, measured, skeleton.rules)


def _is_adapter(variable: Any) -> bool:
    return isinstance(variable, AdapterParam | SlotState)


def _learns(name: str, variable: Any, is_trained: Callable[[str], bool]) -> bool:
    if not isinstance(variable, nnx.Param) or not is_trained(name):
        return False
    value = variable.get_value()
    if not hasattr(value, "dtype"):
        raise InputError(
            f"{name} is a parameter of several arrays ({type(value).__name__}) and cannot be "
            "trained in full; make each of them a parameter"
        )
    return learns(name, value.dtype, is_trained)


def _widen(value: Array) -> Array:
    """Keep in float32 what learns of a bf16 model: small steps must not round away."""
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))


def _value_of(variable: Any) -> Any:
    """Return the value of a variable, or an array that is an attribute by itself."""
    return variable.get_value() if isinstance(variable, nnx.Variable) else jnp.asarray(variable)


def _as_leaf(value: Any) -> Any:
    """Return a variable's value as Flax takes it; a dict or a tuple would be read as a subtree."""
    return nnx.Variable(value) if isinstance(value, dict | list | tuple) else value


def module_names(slots: dict[str, Slots]) -> tuple[str, ...]:
    """The name of every matrix that has slots, in the order of the dictionary."""
    return tuple(n for path, s in slots.items() for n in stack_names(path, s.is_advancing.shape))

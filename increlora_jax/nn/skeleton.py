"""A model taken apart into plain dictionaries by path, and put together in a step."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import PathParts
from jaxtyping import Array, PyTree

from increlora_jax.core.adapter import Adapter, Scaling, Slots, Update, effective_update
from increlora_jax.core.probe import Probe, spread_probe
from increlora_jax.core.stacking import by_name
from increlora_jax.errors import InputError
from increlora_jax.nn.attach import adapters_of, detach, merge
from increlora_jax.nn.effective import is_reading
from increlora_jax.nn.kernels import KernelAxes, stack_names
from increlora_jax.nn.low_rank import AdapterParam, SlotState
from increlora_jax.nn.modes import switch_to_training
from increlora_jax.nn.parameters import ParameterAdapter
from increlora_jax.nn.paths import name_nodes
from increlora_jax.nn.rules import Rules, make_rules
from increlora_jax.nn.statistics import read_statistics, snapshot
from increlora_jax.nn.targets import IsTrained, learns
from increlora_jax.quantization import as_dense

NO_PROBES: Mapping[str, Probe] = MappingProxyType({})


class Parts(NamedTuple):
    """Arrays of a model by path.

    Attributes:
        adapters: the parameters of every adapter.
        slots: the masks and births of every adapter.
        head: the model's own parameters that learn in full.
        base: frozen arrays, by path or as stacks by a group of paths (`core.stacking`).
        statistics: arrays that the forward pass writes, such as a BatchNorm's; default: none.
        rules: the rules by which adapters are applied; None, the default, if they are not known.
        scales: s of an adapter, in the place of the rules [*stack]; default: none.

    >>> import increlora_jax as il
    >>> _, parts = il.split(il.attach({"w": jnp.ones((6, 4))}), lambda path: False)
    >>> parts.adapters["w"].A.shape, parts.base["w"].shape, parts.rules.scaling.alpha
    ((6, 4), (6, 4), 16.0)
    """

    adapters: dict[str, Adapter]
    slots: dict[str, Slots]
    head: dict[str, Array]
    base: dict[Any, Array]  # Any: a path, or a `core.stacking.Group` of paths
    statistics: dict[str, Array] = {}  # noqa: RUF012  # nothing changes the default
    rules: Rules | None = None
    scales: dict[str, Array] = {}  # noqa: RUF012  # as above

    def update_of(self, path: str, scaling: Scaling) -> Update:
        """Return the update of an adapter; `scaling` is its rule for s."""
        own = self.scales.get(path, scaling)
        return effective_update(self.adapters[path], self.slots[path], own)

    def frozen(self) -> dict[str, Array]:
        """Return the base by path."""
        return by_name(self.base)

    def learned(self) -> dict[str, Array]:
        """Return all arrays but the base by path."""
        flat = {**self.head, **self.statistics}
        for group in (self.adapters, self.slots):
            for module, fields in group.items():
                flat.update({f"{module}.adapter.{n}": v for n, v in fields._asdict().items()})
        return flat


@runtime_checkable
class Skeleton(Protocol):
    """Model without its arrays: static, hashable by identity, closed over by jitted functions.

    >>> import increlora_jax as il
    >>> skeleton, parts = il.split({"w": jnp.ones((6, 4))}, lambda path: False)
    >>> isinstance(skeleton, il.Skeleton), skeleton.assemble(parts)["w"].shape
    (True, (6, 4))
    """

    @property
    def modules(self) -> tuple[str, ...]:
        """Return the adapted modules in order; the matrices of a stack are `path[0]` and so on."""

    @property
    def rules(self) -> Rules | None:
        """Return the rules by which the adapters are applied; see `make_rules`."""

    def assemble(
        self,
        parts: Parts,
        key: Array | None = None,
        probes: Mapping[str, Probe] = NO_PROBES,
    ) -> PyTree:
        """Put the model together: for training with a key, for evaluation without.

        Args:
            parts: all arrays of the model.
            key: of the dropout [].
            probes: the parts of the backward pass to read, by adapter (`core.probe`).

        Returns:
            A model that is called as the user's own.
        """

    def snapshot(self, model: PyTree) -> PyTree:
        """Return all values that a forward pass of an assembled model could write."""

    def read_statistics(self, model: PyTree, parts: Parts, before: PyTree) -> dict[str, Array]:
        """Return the statistics after the forward pass of a model assembled of `parts`.

        A warning names other values that changed since the snapshot `before`.
        """

    def merge(self, parts: Parts) -> PyTree:
        """Make a plain model of the user's own kind, with W + ΔW in the place of W."""


class ModuleSkeleton(NamedTuple):
    """Skeleton of an NNX model.

    Attributes:
        graphdef: the model without its variables.
        paths: Flax's path of every variable but the random streams, by dotted path.
        streams: Flax's path and the shape of every variable of a random stream.
        modules: see `Skeleton`.
        is_called_once: whether a forward pass calls each adapted layer once; default: False.
        scaling: of the adapters; None without adapters.
        axes: of adapted parameters; default: none.
        kinds: the class of every variable of the base whose value is a pytree; default: none.
    """

    graphdef: nnx.GraphDef[nnx.Module]
    paths: dict[str, PathParts]
    streams: dict[str, tuple[PathParts, tuple[int, ...]]]
    modules: tuple[str, ...]
    is_called_once: bool = False
    scaling: Scaling | None = None
    axes: Mapping[str, KernelAxes] = MappingProxyType({})
    kinds: Mapping[str, type[nnx.Variable]] = MappingProxyType({})

    @property
    def rules(self) -> Rules | None:
        """Return the rules by which the adapters are applied; see `make_rules`."""
        return make_rules(self.scaling, self.axes)

    def assemble(
        self,
        parts: Parts,
        key: Array | None = None,
        probes: Mapping[str, Probe] = NO_PROBES,
    ) -> nnx.Module:
        """Put the model together; see `Skeleton`."""
        model = self._assemble(parts, key, probes)
        if key is None:
            model.eval()
        else:
            switch_to_training(model)
        return model

    def _assemble(
        self,
        parts: Parts,
        key: Array | None = None,
        probes: Mapping[str, Probe] = NO_PROBES,
    ) -> nnx.Module:
        """Put the model together, in the mode that the user's model had."""
        model = nnx.merge(self.graphdef, self._state(parts, key))
        adapters = adapters_of(model)
        for path, scale in parts.scales.items():
            adapters[path].scale = SlotState(scale)
        for path, probe in probes.items():
            own = adapters[path]
            is_one_use = self.is_called_once and own.is_called
            own.set_probe(probe if is_one_use else spread_probe(probe, own.update))
        return model

    def snapshot(self, model: nnx.Module) -> dict[str, object]:
        """Return all values that a forward pass could write; see `Skeleton`."""
        return snapshot(model)

    def read_statistics(
        self, model: nnx.Module, parts: Parts, before: Mapping[str, object]
    ) -> dict[str, Array]:
        """Return the statistics; see `Skeleton`."""
        return read_statistics(model, parts.statistics, before, parts.head)

    def merge(self, parts: Parts) -> nnx.Module:
        """Make a plain NNX model, whose kernels are plain too, in the mode of the user's model."""
        base = {path: as_dense(value) for path, value in parts.frozen().items()}
        return detach(merge(self._assemble(parts._replace(base=base))))

    def _state(self, parts: Parts, key: Array | None) -> PyTree:
        flat = {**parts.frozen(), **parts.learned()}
        leaves = {
            # Flax would read a dict or a tuple as a subtree.
            path: self.kinds[name](flat[name]) if name in self.kinds else flat[name]
            for name, path in self.paths.items()
        }
        root = jax.random.key(0) if key is None else key
        # All keys at once: one operation to compile instead of one for each stream.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(root, jnp.arange(len(self.streams)))
        for own, (path, shape) in zip(keys, self.streams.values(), strict=True):
            if path[-1] != "key":
                leaves[path] = jnp.zeros(shape, jnp.uint32)
            else:
                leaves[path] = jax.random.split(own, shape) if shape else own
        return nnx.from_flat_state(leaves)


def _refuse_readings(held: Mapping[str, object]) -> None:
    for path, each in held.items():
        if is_reading(each):
            raise InputError(
                f"{path} was assigned from a parameter that has an adapter, and is a copy of its "
                "W + ΔW that would not follow it. Share parameters before il.attach"
            )


def split(
    model: nnx.Module, is_trained: IsTrained, *, is_called_once: bool = False
) -> tuple[ModuleSkeleton, Parts]:
    """Take a model apart; its own parameters learn in full if `is_trained(path)`.

    If a forward pass calls each adapted layer once, the backward pass scores the layer there, and
    holds one dense gradient at a time. The gradients of a layer that is called several times must
    be summed first. Random streams are left out: every step makes them from its key.
    """
    graphdef, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    variables, places = name_nodes(flat), name_nodes((path, path) for path, _ in flat)
    _refuse_readings(variables)
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
        kinds={n: type(own[n]) for n, v in base.items() if isinstance(v, dict | list | tuple)},
    )
    own_parameters = {name: adapter.parameters for name, adapter in adapters.items()}
    return skeleton, Parts(own_parameters, slots, head, base, measured, skeleton.rules)


def _is_adapter(variable: object) -> bool:
    return isinstance(variable, AdapterParam | SlotState)


def _learns(name: str, variable: object, is_trained: IsTrained) -> bool:
    if not isinstance(variable, nnx.Param) or not is_trained(name):
        return False
    value = variable.get_value()
    if not hasattr(value, "dtype"):
        raise InputError(
            f"{name} is a parameter of several arrays ({type(value).__name__}) and cannot be "
            "trained in full. Make each of them a parameter"
        )
    return learns(name, value.dtype, is_trained)


def _widen(value: Array) -> Array:
    """Widen a parameter that learns to float32: in bfloat16 small steps would be rounded away."""
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))


def _value_of(variable: PyTree) -> PyTree:
    """Return the value of a variable, or an array that is itself an attribute."""
    return variable.get_value() if isinstance(variable, nnx.Variable) else jnp.asarray(variable)


def module_names(slots: dict[str, Slots]) -> tuple[str, ...]:
    """Return the name of every matrix that has slots, in the order of the dictionary."""
    return tuple(n for path, s in slots.items() for n in stack_names(path, s.is_advancing.shape))

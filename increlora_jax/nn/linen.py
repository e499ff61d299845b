"""Adapters on any Linen model, by interception of its layers' calls; its params stay."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from flax.core import meta, unfreeze
from jaxtyping import Array, PyTree

from increlora_jax.core.adapter import Adapter, Scaling, Slots, Update
from increlora_jax.core.meshes import on_any_mesh
from increlora_jax.core.probe import Probe, Spread, spread_probe
from increlora_jax.core.product import apply_update
from increlora_jax.errors import InputError
from increlora_jax.nn.initial import AdapterSettings
from increlora_jax.nn.kernels import (
    EinsumAxes,
    KernelAxes,
    effective_weight,
    rows_of_axes,
)
from increlora_jax.nn.linen_calls import (
    LAYER_TYPES,
    Call,
    Called,
    Context,
    LinenModel,
    call_of,
    is_layer,
    trace_call,
)
from increlora_jax.nn.rules import Rules, make_rules
from increlora_jax.nn.skeleton import NO_PROBES, Parts, module_names
from increlora_jax.nn.statistics import is_statistic, read_collections
from increlora_jax.nn.targets import (
    NO_DROPOUT,
    IsTrained,
    Places,
    Selection,
    Targets,
    Unknown,
    choose_known,
    declared_axes,
    describe_unknown,
    subtree_selector,
)
from increlora_jax.nn.tree import TreeShape, is_kernel, split_arrays, take_apart, warn_of_copies

Layer = nn.Dense | nn.DenseGeneral | nn.Einsum

LAYERS = "Dense, DenseGeneral or Einsum layer"
EXTRA = "increlora_adapter"
"""The name of an adapter among its layer's parameters; lifted transforms slice it with them."""


class LinenSite(NamedTuple):
    """Place for an adapter.

    Attributes:
        kernel: its path.
        axes: of the matrix.
        shape: of the kernel.
        is_layer: whether the adapter is added to the output of a layer. Otherwise the kernel is
            adapted by effective weights, as is one that is also read beside its layer's call.
    """

    kernel: str
    axes: KernelAxes
    shape: tuple[int, ...]
    is_layer: bool


class AdaptedLinen(NamedTuple):
    """Linen model with the adapters beside it."""

    model: LinenModel
    adapters: dict[str, Adapter]
    slots: dict[str, Slots]
    sites: dict[str, LinenSite]
    scaling: Scaling
    dropout: float


def find_targets(model: LinenModel, selection: Selection) -> dict[str, LinenSite]:
    """Find the targeted layers and declared parameters by path, in module order.

    `targets` speaks of module paths such as `Block_0.Dense_1`; the layers of an `nn.scan` are a
    stack, with a rank each. A parameter has its own path.

    Raises:
        InputError: a pattern that matches nothing, or a layer that cannot be adapted.
    """
    if isinstance(model.module, LAYER_TYPES) and not selection.parameters:
        raise InputError(
            f"the model is itself a {type(model.module).__name__}, whose kernel has no path. Put "
            "it into a module, as in nn.Sequential([layer])"
        )
    shapes = {p: tuple(a.shape) for p, a in model.take_apart()[1].items() if is_kernel(a)}
    modules = trace_call(model)
    declared = {
        path: LinenSite(path, axes, shapes[path], is_layer=False)
        for path, axes in declared_axes(shapes, selection.parameters).items()
    }
    # A module that is applied within another, with variables of its own, has no kernel here.
    free = set(map(_layer_of, shapes.keys() - declared.keys()))
    found = {p: m for p, m in modules.items() if isinstance(m.module, LAYER_TYPES) and p in free}
    layers = {path: called for path, called in found.items() if called.obstacle is None}
    unknown, quiet = _unknown(modules, layers, declared, shapes)
    obstacles = {path: called.obstacle for path, called in found.items()}
    refused = {path: obstacle for path, obstacle in obstacles.items() if obstacle is not None}
    places = Places([*layers, *declared], unknown, refused, declared, quiet)
    return {
        path: declared.get(path) or _layer_site(path, layers[path], shapes)
        for path in choose_known(places, selection, LAYERS)
    }


def _unknown(
    modules: Mapping[str, Called],
    layers: Mapping[str, Called],
    declared: Mapping[str, LinenSite],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, Unknown], dict[str, Unknown]]:
    """Return the modules with kernels that must be declared: of other classes, and of Flax."""
    held: dict[str, dict[str, tuple[int, ...]]] = {}
    for kernel, shape in shapes.items():
        path = kernel.rpartition(".")[0]
        is_other = path in modules and not isinstance(modules[path].module, LAYER_TYPES)
        if path and is_other and path not in layers and kernel not in declared:
            held.setdefault(path, {})[kernel] = shape
    unknown: dict[str, Unknown] = {}
    quiet: dict[str, Unknown] = {}
    for path, kernels in held.items():
        module = modules[path].module
        of = quiet if _is_flax(module) else unknown
        of[path] = describe_unknown(module, kernels, is_lookup=isinstance(module, nn.Embed))
    return unknown, quiet


def _is_flax(module: nn.Module) -> bool:
    return type(module).__module__.startswith("flax.")


def _layer_site(path: str, called: Called, shapes: Mapping[str, tuple[int, ...]]) -> LinenSite:
    shape, inner = shapes[f"{path}.kernel"], called.kernel
    if shape[len(shape) - len(inner) :] != inner:
        raise InputError(
            f"{path}.kernel {list(shape)} is used as {list(inner)}: it is stacked along another "
            f"axis than the first. Declare it in parameters={{r'{re.escape(path)}\\.kernel': "
            "KernelAxes(…)}, use variable_axes={'params': 0}, or exclude it"
        )
    return LinenSite(f"{path}.kernel", _layer_axes(called.module), shape, not called.is_read)


def _layer_of(kernel: str) -> str | None:
    """Return the path of the layer that a kernel may belong to."""
    path, _, name = kernel.rpartition(".")
    return path if path and name == "kernel" else None


def _layer_axes(layer: nn.Module) -> KernelAxes:
    match layer:
        case nn.Einsum():
            return EinsumAxes.parse(layer.einsum_str).kernel_axes()
        case nn.Dense():
            return KernelAxes((-2,), (-1,))
        case nn.DenseGeneral():
            outputs, inputs = np.size(layer.features), np.size(layer.axis)
            both = outputs + inputs
            return KernelAxes(tuple(range(-both, -outputs)), tuple(range(-outputs, 0)))
    raise TypeError(f"a {type(layer).__name__} is no {LAYERS}")


def attach(
    model: LinenModel, sites: Mapping[str, LinenSite], settings: AdapterSettings
) -> AdaptedLinen:
    """Make adapters for layers and parameters of a Linen model, which stays as it is.

    Raises:
        InputError: a rank over a matrix, or dropout of a kernel adapted by effective weights.
    """
    read = [path for path, site in sites.items() if not site.is_layer]
    if settings.dropout and read:
        raise InputError(f"{read[0]}: {NO_DROPOUT}")
    adapters, slots = settings.begin_all(sites)
    return AdaptedLinen(model, adapters, slots, dict(sites), settings.scaling, settings.dropout)


def split(
    adapted: AdaptedLinen | LinenModel, is_trained: IsTrained
) -> tuple["LinenSkeleton", Parts]:
    """Take a model apart; its own parameters learn in full if `is_trained(path)`."""
    if isinstance(adapted, LinenModel):
        adapted = AdaptedLinen(adapted, {}, {}, {}, Scaling(1.0), 0.0)
    shape, arrays = adapted.model.take_apart()
    held = set(take_apart(adapted.model.variables.get("params", {}))[1])
    head, base = split_arrays(arrays, lambda path: path in held and is_trained(path))
    warn_of_copies(arrays, {*(site.kernel for site in adapted.sites.values()), *head})
    measured = {path: base.pop(path) for path in list(base) if is_statistic(path, held)}
    skeleton = LinenSkeleton(
        shape,
        adapted.model.module,
        adapted.sites,
        adapted.scaling,
        adapted.dropout,
        module_names(adapted.slots),
        [call_of(adapted.model.inputs, adapted.model.options)],
    )
    return skeleton, Parts(adapted.adapters, adapted.slots, head, base, measured, skeleton.rules)


def parameter_selector(model: LinenModel, modules: Targets) -> IsTrained:
    """Return a test of parameter paths, true inside some modules, given as targets."""
    return subtree_selector(model.take_apart()[1], modules)


class Extra(NamedTuple):
    """Adapter of a layer: its update, and the key of the dropout on its input."""

    update: Update
    probe: Spread | None
    key: Array | None


class WholeModel(NamedTuple):
    """Linen model to call: `module.apply` with variables and adapters.

    Attributes:
        module: the user's.
        variables: with the adapters among the parameters of their layers.
        key: of the random stream `dropout`; None without dropout.
        dropout: rate on the input of an adapter.
        written: the collections that calls have written.
        layers: adapted by their outputs.
        known: calls that read no kernel of these layers.
    """

    module: nn.Module
    variables: PyTree
    key: Array | None
    dropout: float
    written: dict[str, PyTree]
    layers: frozenset[str]
    known: list[TreeShape]

    def __call__(self, *inputs: PyTree, **options: PyTree) -> PyTree:
        """Apply the module, with the options of `apply` and one random stream, `dropout`.

        With `mutable`, as for a BatchNorm, the next step starts with the new statistics.
        """
        self._check_reads(inputs, options)
        rngs = {} if self.key is None else {"rngs": {"dropout": self.key}}
        with nn.intercept_methods(self._intercept):
            output = self.module.apply(self.variables, *inputs, **(rngs | options))
        if options.get("mutable", False) is not False:
            self.written.update(output[1])
        return output

    def _check_reads(self, inputs: PyTree, options: Mapping[str, PyTree]) -> None:
        call = call_of(inputs, options)
        if not self.layers or call in self.known:
            return
        called = trace_call(LinenModel(self.module, self.variables, *inputs, **options))
        for path in sorted(self.layers & called.keys()):
            if called[path].is_read:
                raise InputError(
                    f"{path}: this call of the model reads the layer's kernel beside the layer's "
                    "call, and the call that the LinenModel was given does not. Give the "
                    f"LinenModel this call, or exclude {path}"
                )
        self.known.append(call)

    def _intercept(
        self, call: Call, args: Sequence[PyTree], options: Mapping[str, PyTree], context: Context
    ) -> PyTree:
        y = call(*args, **options)
        is_call = is_layer(context.module) and context.method_name == "__call__"
        extra = context.module.get_variable("params", EXTRA) if is_call else None
        if extra is None:
            return y
        x = args[0] if args else options["inputs"]

        def apply(x: Array, extra: Extra) -> Array:
            return _adapter_output(context.module, x, extra, self.dropout).astype(y.dtype)

        return y + on_any_mesh(apply, x, extra, like=y)


def _adapter_output(layer: Layer, x: Array, extra: Extra, dropout: float) -> Array:
    x = x if layer.dtype is None else x.astype(layer.dtype)
    if isinstance(layer, nn.Einsum):
        axes = EinsumAxes.parse(layer.einsum_str)
        return axes.from_rows(_product(axes.to_rows(x), extra, dropout), layer.shape)
    if isinstance(layer, nn.Dense):
        return _product(x, extra, dropout)
    y = _product(rows_of_axes(x, np.atleast_1d(layer.axis).tolist()), extra, dropout)
    return y.reshape(*y.shape[:-1], *np.atleast_1d(layer.features).tolist())


def _product(x: Array, extra: Extra, dropout: float) -> Array:
    if extra.key is not None:
        x = nnx.Dropout(dropout, deterministic=False)(x, rngs=extra.key)
    return apply_update(x, extra.update, extra.probe)


class LinenSkeleton(NamedTuple):
    """Skeleton of a Linen model."""

    shape: TreeShape
    module: nn.Module
    sites: dict[str, LinenSite]
    scaling: Scaling
    dropout: float
    modules: tuple[str, ...]
    known: list[TreeShape]  # see `WholeModel`

    @property
    def rules(self) -> Rules | None:
        """Return the rules by which the adapters are applied; see `make_rules`."""
        return (
            make_rules(self.scaling, {path: site.axes for path, site in self.sites.items()})
            if self.modules
            else None
        )

    def assemble(
        self,
        parts: Parts,
        key: Array | None = None,
        probes: Mapping[str, Probe] = NO_PROBES,
    ) -> WholeModel:
        """Put the model together; its own call decides whether its dropout is on."""
        arrays, extras = {**parts.base, **parts.head, **parts.statistics}, {}
        for index, (path, site) in enumerate(self.sites.items()):
            update = parts.update_of(path, self.scaling)
            probe = spread_probe(probes.get(path), update)
            if site.is_layer:
                stack = update.scale.shape
                own = self._dropout_keys(key, index, stack)
                extras[path] = Extra(update, probe, own)
            else:
                kernel = arrays[site.kernel]
                arrays[site.kernel] = effective_weight(kernel, site.axes, update, probe)
        variables = self.shape.fill(arrays)
        for path, extra in extras.items():
            _place(variables["params"], path, extra)
        layers = frozenset(extras)
        return WholeModel(self.module, variables, key, self.dropout, {}, layers, self.known)

    def snapshot(self, model: WholeModel) -> None:
        """Return nothing: the model records the writes of its calls; see `Skeleton`."""

    def read_statistics(self, model: WholeModel, parts: Parts, before: None) -> dict[str, Array]:
        """Read the statistics; see `Skeleton`."""
        written = take_apart(unfreeze(meta.unbox(model.written)))[1]
        return read_collections(written, parts.statistics, model.variables)

    def merge(self, parts: Parts) -> PyTree:
        """Make plain variables, as `init` returns them."""
        arrays = {**parts.base, **parts.head, **parts.statistics}
        for path, site in self.sites.items():
            update = parts.update_of(path, self.scaling)
            arrays[site.kernel] = effective_weight(arrays[site.kernel], site.axes, update)
        return self.shape.fill(arrays)

    def _dropout_keys(self, key: Array | None, index: int, stack: tuple[int, ...]) -> Array | None:
        if key is None or not self.dropout:
            return None
        own = jax.random.fold_in(key, index)
        return jax.random.split(own, stack) if stack else own


def _place(params: PyTree, path: str, extra: Extra) -> None:
    for name in path.split("."):
        params = params[name]
    params[EXTRA] = extra

"""Put adapters on any NNX model, merge them into its kernels, and take them off again."""

import re
import warnings
from collections.abc import Mapping
from typing import NamedTuple

from flax import nnx

from increlora_jax.dropout import make_dropout
from increlora_jax.errors import InputError
from increlora_jax.nn.equations import Trials, find_equation
from increlora_jax.nn.initial import AdapterSettings
from increlora_jax.nn.kernels import EinsumAxes, KernelAxes, module_order
from increlora_jax.nn.layers import (
    LAYER_TYPES,
    AdaptedLayer,
    Layer,
    find_obstacle,
    is_layer,
    kernel_axes,
    wrap_layer,
)
from increlora_jax.nn.low_rank import LowRankAdapter
from increlora_jax.nn.parameters import (
    ParameterAdapter,
    adapt_parameter,
    adapted_parameters,
    merge_parameter,
    restore_parameters,
    unmerge_parameter,
)
from increlora_jax.nn.paths import find_shared, list_paths, name_nodes, name_path, replace_nodes
from increlora_jax.nn.targets import (
    ALL_LINEAR,
    NO_DROPOUT,
    IsTrained,
    Parameters,
    Places,
    Selection,
    Targets,
    Unknown,
    choose_known,
    declared_axes,
    describe_unknown,
    select,
)

LAYERS = "Linear, LinearGeneral or Einsum layer"

_NORMALIZES = "computes another kernel from the one it holds: no update could be merged into it"
OPAQUE: dict[type[nnx.Module], str] = {
    nnx.WeightNorm: _NORMALIZES,
    nnx.SpectralNorm: _NORMALIZES,
    nnx.bridge.ToNNX: "calls Linen with its parameters. Give il.LinenModel(module, variables, "
    "*inputs) in its place",
}
"""Wrappers whose layers and parameters cannot be adapted, and why."""


class ModuleSite(NamedTuple):
    """Place for an adapter: a layer of Flax, or a declared parameter of any module.

    Attributes:
        module: the layer, or the module of the parameter.
        parameter: the name of the parameter; None of a layer.
        axes: of the matrix.
        kernel: the path of the kernel's variable, the first one if the variable has several.
        equation: by which the module's call uses a parameter; None if it has another use.
    """

    module: nnx.Module
    parameter: str | None
    axes: KernelAxes
    kernel: str
    equation: EinsumAxes | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the kernel, which may be abstract."""
        return tuple(vars(self.module)[self.parameter or "kernel"].shape)


def attach(
    model: nnx.Module, sites: Mapping[str, ModuleSite], settings: AdapterSettings
) -> nnx.Module:
    """Put adapters on layers and parameters of a model, in place, and return the model.

    Variables and names stay. A stack of layers (`nnx.vmap`, run by `nnx.scan`) gets one stack of
    adapters. A layer shared by several paths gets one adapter.

    Raises:
        InputError: a rank over a matrix, or dropout of a parameter; the model is as it was.
    """
    adapters = {path: _new_adapter(path, site, settings) for path, site in sites.items()}
    replacements: dict[int, nnx.Module] = {}
    for path, site in sites.items():
        if site.parameter is not None:
            adapt_parameter(site.module, site.parameter, adapters[path])
        else:
            replacements[id(site.module)] = wrap_layer(site.module, adapters[path])
    return replace_nodes(model, replacements)


def _new_adapter(path: str, site: ModuleSite, settings: AdapterSettings) -> LowRankAdapter:
    adapter, slots = settings.begin(path, site)
    if settings.dropout and site.parameter is not None and site.equation is None:
        raise InputError(f"{path}: {NO_DROPOUT}")
    stack = site.axes.stack_shape(site.shape)
    dropout = make_dropout(settings.dropout, settings.rngs, stack)
    if site.parameter is None:
        return LowRankAdapter(adapter, slots, settings.scaling, dropout)
    return ParameterAdapter(adapter, slots, settings.scaling, dropout, site.axes, site.equation)


def detach(model: nnx.Module) -> nnx.Module:
    """Replace adapted layers by plain ones, in place; kernels stay as they are, merged or not.

    Args:
        model: an NNX module.

    Returns:
        The same module.

    >>> import increlora_jax as il
    >>> model = il.attach(nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0))))
    >>> type(il.detach(model).layers[0]) is nnx.Linear
    True
    """
    for _, module in list(nnx.iter_modules(model)):
        restore_parameters(module)
    layers = adapted_layers(model).values()
    return replace_nodes(model, {id(layer): layer.unwrap() for layer in layers})


def merge(model: nnx.Module) -> nnx.Module:
    """Add ΔW to W in every adapted layer, in place; `unmerge` restores W bit for bit.

    Meanwhile the adapters are off, and have no gradient.

    If several places share a kernel, each gets its own, with a warning; `unmerge` makes it shared
    again.

    Args:
        model: an NNX module.

    Returns:
        The same module.

    Raises:
        InputError: the model is merged already.

    >>> import increlora_jax as il
    >>> import jax.numpy as jnp
    >>> model = il.attach(nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0))))
    >>> before = model(jnp.ones((1, 4)))
    >>> bool((il.merge(model)(jnp.ones((1, 4))) == before).all())
    True
    """
    _warn_of_untying(model)
    for layer in adapted_layers(model).values():
        layer.merge()
    for module, name in _adapted_parameters(model):
        merge_parameter(module, name)
    return model


def unmerge(model: nnx.Module) -> nnx.Module:
    """Undo `merge`, in place.

    Args:
        model: an NNX module.

    Returns:
        The same module.

    Raises:
        InputError: the model is not merged.

    >>> import increlora_jax as il
    >>> model = il.attach(nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0))))
    >>> il.unmerge(il.merge(model)).layers[0].original is None
    True
    """
    for layer in adapted_layers(model).values():
        layer.unmerge()
    for module, name in _adapted_parameters(model):
        unmerge_parameter(module, name)
    return model


def adapted_layers(model: nnx.Module) -> dict[str, AdaptedLayer]:
    """Return every adapted layer by path, in module order."""
    return {p: m for p, m in _modules(model).items() if isinstance(m, AdaptedLayer)}


def adapters_of(model: nnx.Module) -> dict[str, LowRankAdapter]:
    """Return every adapter by the path of its layer or parameter, in module order."""
    found = {
        path.removesuffix(".adapter"): module
        for path, module in _modules(model).items()
        if isinstance(module, LowRankAdapter)
    }
    return {path: found[path] for path in sorted(found, key=module_order)}


def find_targets(model: nnx.Module, selection: Selection) -> dict[str, ModuleSite]:
    """Find the targeted layers and declared parameters by path, in module order.

    Raises:
        InputError: a regex or a name that matches nothing, a module whose parameters must be
            declared first, or a model that has adapters already.
    """
    if adapters_of(model):
        raise InputError("the model has adapters already. Detach them first")
    if isinstance(model, LAYER_TYPES) and not selection.parameters:
        raise InputError(
            f"the model is itself a {type(model).__name__}, and an adapted layer could not take "
            "its place. Put it into a module, as in nnx.Sequential(layer)"
        )
    if why := _find_opacity(model):
        raise InputError(f"the model is itself a {why}")
    modules, first = _modules(model), _first_paths(model)
    declared = _declared_sites(model, selection.parameters)
    for path, site in _declared_sites(model, _derived_axes(modules)).items():
        if selection.targets != ALL_LINEAR or site.equation is not None:
            declared.setdefault(path, site)
    by_itself = {id(site.module) for site in declared.values()}
    layers = {p: m for p, m in modules.items() if is_layer(m) and id(m) not in by_itself}
    unknown, quiet = _unknown_modules(modules, declared)
    refused = _refused(model, modules, declared)
    known = [path for path in [*layers, *declared] if path not in refused]
    places = Places(known, unknown, refused, declared, quiet)

    def layer_site(layer: Layer) -> ModuleSite:
        return ModuleSite(layer, None, kernel_axes(layer), first[id(layer.kernel)])

    return {
        path: declared.get(path) or layer_site(layers[path])
        for path in choose_known(places, selection, LAYERS)
    }


def parameter_selector(model: nnx.Module, modules: Targets) -> IsTrained:
    """Return a test of parameter paths, true inside some modules, given as targets.

    A parameter that several modules share has several paths. A warning names the modules that share
    a parameter with a chosen one and are not chosen.

    Raises:
        InputError: a name that no module of the model has.
    """
    paths = list_paths(model)
    names = [path for path, node in paths.items() if isinstance(node, nnx.Module)]
    chosen = select(sorted(names, key=module_order), modules, "modules_to_save", "module")

    def is_inside(path: str) -> bool:
        return any(path.startswith(module + ".") for module in chosen)

    first = _first_paths(model)
    trained = {
        first[id(node)]
        for path, node in paths.items()
        if isinstance(node, nnx.Variable) and is_inside(path)
    }
    for shared in find_shared(model).values():
        if others := [path for path in shared if not is_inside(path)]:
            _warn_of_training(shared, others)
    return lambda path: path in trained or is_inside(path)


def _warn_of_training(shared: list[str], others: list[str]) -> None:
    if len(others) < len(shared):
        inside = next(path for path in shared if path not in others)
        warnings.warn(
            f"modules_to_save: {inside} is one parameter with {', '.join(others)}; trained in full,"
            " it changes there as well",
            stacklevel=3,
        )


def _warn_of_untying(model: nnx.Module) -> None:
    adapted = [(layer, "kernel") for layer in adapted_layers(model).values()]
    merged = {id(vars(m)[name]) for m, name in [*adapted, *_adapted_parameters(model)]}
    for key, paths in find_shared(model).items():
        if key in merged:
            warnings.warn(
                f"merge: {' and '.join(paths)} were one parameter and become parameters of their "
                "own: each adapted place takes its own update; unmerge shares it again",
                stacklevel=3,
            )


def _first_paths(model: nnx.Module) -> dict[int, str]:
    """Return the path of every variable by its id; of a shared one, Flax's own choice."""
    graph = nnx.iter_graph(model)
    return {id(node): name_path(path) for path, node in graph if isinstance(node, nnx.Variable)}


def _modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """Return every module but the model itself by dotted path, numbers in numeric order."""
    found = name_nodes((path, module) for path, module in nnx.iter_modules(model) if path)
    return {path: found[path] for path in sorted(found, key=module_order)}


def _declared_sites(model: nnx.Module, parameters: Parameters) -> dict[str, ModuleSite]:
    held = {
        ".".join(map(str, (*path, name))): (module, name)
        for path, module in nnx.iter_modules(model)
        for name in _kernels(module)
    }
    shapes = {path: vars(module)[name].shape for path, (module, name) in held.items()}
    axes = declared_axes(shapes, parameters)
    for path, axes_of_path in axes.items():
        depth = len(axes_of_path.stack_shape(shapes[path]))
        if max(axes_of_path.stack_axes(len(shapes[path])), default=-1) != depth - 1:
            raise InputError(
                f"{path} {list(shapes[path])} has stack axes behind others by {axes_of_path}, and "
                "an adapted module is sliced along its first axes. Adapt the pytree "
                "nnx.to_pure_dict(nnx.state(model)) with these parameters, or declare all other "
                "axes as inputs or outputs"
            )
    first = _first_paths(model)
    sites, trials = {}, Trials()
    for path, (module, name) in held.items():
        if path in axes:
            shape = shapes[path][len(axes[path].stack_shape(shapes[path])) :]
            equation = find_equation(module, name, shape, axes[path], trials)
            kernel = first[id(vars(module)[name])]
            sites[path] = ModuleSite(module, name, axes[path], kernel, equation)
    return sites


def _refused(
    model: nnx.Module, modules: dict[str, nnx.Module], declared: dict[str, ModuleSite]
) -> dict[str, str]:
    """Return the reason of every place that cannot be adapted."""
    refused = {}
    for path, module in modules.items():
        is_declared = any(site.module is module for site in declared.values())
        obstacle = find_obstacle(module) if isinstance(module, LAYER_TYPES) else None
        if obstacle is not None and not is_declared:
            refused[path] = (
                f"{obstacle}; to adapt it by effective weights, declare its kernel in "
                f"parameters={{r'{re.escape(path)}\\.kernel': KernelAxes(…)}}"
            )
    places = [p for p, m in modules.items() if isinstance(m, LAYER_TYPES)] + [*declared]
    for wrapper, module in nnx.iter_modules(model):
        if why := _find_opacity(module):
            inside = [path for path in places if path.startswith(name_path((*wrapper, "")))]
            held = inside or [name_path(wrapper)] * isinstance(module, nnx.bridge.ToNNX)
            refused |= dict.fromkeys(held, f"part of a {why}")
    return refused


def _find_opacity(module: nnx.Module) -> str | None:
    """Return the class of a wrapper whose layers cannot be adapted, and why; None of others."""
    name = type(module).__name__
    reasons = (why for kind, why in OPAQUE.items() if isinstance(module, kind))
    return next((f"{name}, which {why}" for why in reasons), None)


def _derived_axes(modules: dict[str, nnx.Module]) -> dict[str, KernelAxes]:
    """Return the axes of the only array of every module that has an equation for it."""
    derived = {}
    for path, module in modules.items():
        equation, names = getattr(module, "einsum_str", None), _kernels(module)
        if is_layer(module) or not isinstance(equation, str) or len(names) != 1:
            continue
        try:
            parsed = EinsumAxes.parse(equation)
        except (InputError, ValueError):
            continue  # it must be declared
        if len(parsed.kernel) == vars(module)[names[0]].ndim:
            derived[re.escape(f"{path}.{names[0]}")] = parsed.kernel_axes()
    return derived


def _unknown_modules(
    modules: dict[str, nnx.Module], declared: dict[str, ModuleSite]
) -> tuple[dict[str, Unknown], dict[str, Unknown]]:
    """Return the modules with kernels that must be declared: of other classes, and of Flax."""
    unknown: dict[str, Unknown] = {}
    quiet: dict[str, Unknown] = {}
    for path, module in modules.items():
        held = {f"{path}.{name}": vars(module)[name].shape for name in _kernels(module)}
        if isinstance(module, LAYER_TYPES) or is_layer(module) or held.keys() <= declared.keys():
            continue
        of = quiet if type(module).__module__.startswith("flax.") else unknown
        of[path] = describe_unknown(module, held, is_lookup=isinstance(module, nnx.Embed))
    return unknown, quiet


def _kernels(module: nnx.Module) -> list[str]:
    """Return the names of a module's own parameters that could be matrices."""
    held = vars(module).items()
    return [n for n, v in held if isinstance(v, nnx.Param) and len(getattr(v, "shape", ())) > 1]


def _adapted_parameters(model: nnx.Module) -> list[tuple[nnx.Module, str]]:
    return [(m, name) for _, m in nnx.iter_modules(model) for name in adapted_parameters(m)]

"""Put adapters on any NNX model, merge them into its kernels, and take them off again."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from increlora_jax.core.adapter import Scaling
from increlora_jax.errors import InputError
from increlora_jax.nn.kernels import KernelAxes, module_order, stack_names
from increlora_jax.nn.layers import ADAPTED_TYPES, AdaptedLayer, LowRankAdapter, kernel_axes
from increlora_jax.nn.parameters import (
    ParameterAdapter,
    adapt_parameter,
    adapted_parameters,
    merge_parameter,
    restore_parameters,
    unmerge_parameter,
)
from increlora_jax.nn.start import Start, start_small
from increlora_jax.nn.targets import (
    NO_DROPOUT,
    NO_PARAMETERS,
    Parameters,
    Targets,
    Unknown,
    choose_known,
    declared_axes,
    select,
    slots_for,
)

LAYERS = "Linear, LinearGeneral or Einsum layer"


class Site(NamedTuple):
    """A place for an adapter: a layer of Flax, or a module and its declared parameter's name."""

    module: nnx.Module
    parameter: str | None
    axes: KernelAxes

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The shape of the kernel, which may be abstract."""
        return tuple(vars(self.module)[self.parameter or "kernel"].shape)


def attach(
    model: nnx.Module,
    targets: Targets,
    *,
    exclude: Targets = (),
    parameters: Parameters = NO_PARAMETERS,
    max_rank: int | dict[str, int] = 8,
    initial_rank: int = 1,
    scaling: Scaling,
    dropout: float = 0.0,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
    start: Start = start_small,
) -> nnx.Module:
    """Put adapters on the targeted `Linear`, `LinearGeneral` and `Einsum` layers, in place.

    The layers' variables and names stay. A parameter of any other module becomes a target by
    `parameters`: a regex for its path → its `KernelAxes`; the module then reads W + ΔW. A stack of
    layers (`nnx.vmap`, run by `nnx.scan`) gets one stack of adapters. `max_rank` is the number of
    slots, one for all or by path. A layer shared by several paths gets one adapter. Returns the
    model, whose outputs are the same bit for bit: λ starts at 0. A reserve that learns in advance
    then moves a layer's output by at most s · 1e-5 · Σ_reserve ‖aₖ‖‖bₖ‖ · ‖x‖.

    Raises:
        InputError: a target that matches nothing or meets a module that is not known, or a rank
            over a matrix.
    """
    found = find_targets(model, targets, exclude, parameters)
    settings = {"scaling": scaling, "rngs": rngs, "dtype": dtype, "start": start}
    adapters = {
        path: _new_adapter(path, site, max_rank, initial_rank, dropout, **settings)
        for path, site in found.items()
    }  # all before the first is put on: an error leaves the model as it was
    return _put_on(model, found, adapters)


def _put_on(
    model: nnx.Module, found: dict[str, Site], adapters: dict[str, LowRankAdapter]
) -> nnx.Module:
    replacements: dict[int, nnx.Module] = {}
    for path, site in found.items():
        adapter = adapters[path]
        if site.parameter is not None:
            adapt_parameter(site.module, site.parameter, adapter)
        else:
            layer = ADAPTED_TYPES[type(site.module)].wrap(site.module, adapter)
            replacements[id(site.module)] = layer
    return _replace(model, replacements)


def _new_adapter(
    path: str,
    site: Site,
    max_rank: int | dict[str, int],
    initial_rank: int,
    dropout: float,
    **settings: Any,
) -> LowRankAdapter:
    shape = site.kernel_shape
    matrix, stack = site.axes.matrix_shape(shape), site.axes.stack_shape(shape)
    slots = slots_for(path, stack, matrix, max_rank, initial_rank)
    settings |= {
        "max_rank": slots,
        "initial_rank": initial_rank,
        "dropout": dropout,
        "stack": stack,
    }
    if site.parameter is None:
        return LowRankAdapter(*matrix, **settings)
    if dropout:
        raise InputError(f"{path}: {NO_DROPOUT}")
    return ParameterAdapter(*matrix, axes=site.axes, **settings)


def detach(model: nnx.Module) -> nnx.Module:
    """Put plain layers back, in place, with their kernels as they are now: merged or not."""
    for _, module in list(nnx.iter_modules(model)):
        restore_parameters(module)
    return _replace(model, {id(layer): layer.unwrap() for layer in adapted_layers(model).values()})


def merge(model: nnx.Module) -> nnx.Module:
    """W ← W + ΔW in every adapted layer, in place; `unmerge` restores W bit for bit."""
    for layer in adapted_layers(model).values():
        layer.merge()
    for module, name in _adapted_parameters(model):
        merge_parameter(module, name)
    return model


def unmerge(model: nnx.Module) -> nnx.Module:
    """Undo `merge`, in place."""
    for layer in adapted_layers(model).values():
        layer.unmerge()
    for module, name in _adapted_parameters(model):
        unmerge_parameter(module, name)
    return model


def adapted_layers(model: nnx.Module) -> dict[str, AdaptedLayer]:
    """Every adapted layer by path, in module order."""
    return {p: m for p, m in _modules(model).items() if isinstance(m, AdaptedLayer)}


def adapters_of(model: nnx.Module) -> dict[str, LowRankAdapter]:
    """Every adapter, of a layer or of a parameter, by the path of what it adapts, in order."""
    found = {
        path.removesuffix(".adapter"): module
        for path, module in _modules(model).items()
        if isinstance(module, LowRankAdapter)
    }
    return {path: found[path] for path in sorted(found, key=module_order)}


def find_targets(
    model: nnx.Module,
    targets: Targets,
    exclude: Targets = (),
    parameters: Parameters = NO_PARAMETERS,
) -> dict[str, Site]:
    """The layers that `targets` selects and `exclude` does not, by path, in module order.

    Raises:
        InputError: a regex or a name that matches nothing (it names layers there are), or that
            meets a module whose parameters must be declared first.
    """
    if adapters_of(model):
        raise InputError("the model has adapters already; detach them first")
    modules = _modules(model)
    layers = {path: module for path, module in modules.items() if type(module) in ADAPTED_TYPES}
    declared = _declared_sites(model, parameters)
    unknown = _unknown_modules(modules, declared)
    return {
        path: declared.get(path) or Site(layers[path], None, kernel_axes(layers[path]))
        for path in choose_known([*layers, *declared], unknown, targets, exclude, LAYERS)
    }


def target_sizes(
    model: nnx.Module,
    targets: Targets,
    exclude: Targets = (),
    parameters: Parameters = NO_PARAMETERS,
) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every target's kernel as a matrix; the model may be abstract.

    Each matrix of a stack has an entry of its own, as `path[3]`.
    """
    sizes = {}
    for path, site in find_targets(model, targets, exclude, parameters).items():
        for name in stack_names(path, site.axes.stack_shape(site.kernel_shape)):
            sizes[name] = site.axes.matrix_shape(site.kernel_shape)
    return sizes


def parameter_selector(model: nnx.Module, modules: Targets) -> Callable[[str], bool]:
    """A test of parameter paths: whether it belongs to one of the `modules`, said as targets.

    Raises:
        InputError: a name that no module of the model has.
    """
    chosen = select(_modules(model), modules, "modules_to_save", "module")
    return lambda path: any(path.startswith(module + ".") for module in chosen)


def _modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """Every module but the model itself by dotted path, numbers in numeric order."""
    found = {".".join(map(str, path)): module for path, module in nnx.iter_modules(model) if path}
    return {path: found[path] for path in sorted(found, key=module_order)}


def _declared_sites(model: nnx.Module, parameters: Parameters) -> dict[str, Site]:
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
                f"{path} {list(shapes[path])} has stack axes behind others by {axes_of_path}; only "
                "leading axes can be those of a stack of layers"
            )
    return {path: Site(*held[path], axes[path]) for path in axes}


def _unknown_modules(
    modules: dict[str, nnx.Module], declared: dict[str, Site]
) -> dict[str, Unknown]:
    """Modules of a class that is not Flax's, with kernels of their own that nobody has declared."""
    unknown: dict[str, Unknown] = {}
    for path, module in modules.items():
        held = {f"{path}.{name}": vars(module)[name].shape for name in _kernels(module)}
        if not type(module).__module__.startswith("flax.") and not held.keys() <= declared.keys():
            unknown[path] = f"a {type(module).__name__}", held
    return unknown


def _kernels(module: nnx.Module) -> list[str]:
    """The names of a module's own parameters that could be matrices."""
    held = vars(module).items()
    return [n for n, v in held if isinstance(v, nnx.Param) and len(getattr(v, "shape", ())) > 1]


def _adapted_parameters(model: nnx.Module) -> list[tuple[nnx.Module, str]]:
    return [(m, name) for _, m in nnx.iter_modules(model) for name in adapted_parameters(m)]


def _replace(model: nnx.Module, replacements: dict[int, nnx.Module]) -> nnx.Module:
    for parent in [module for _, module in nnx.iter_modules(model)]:
        for name, child in _children(parent):
            if id(child) in replacements:
                if isinstance(parent, nnx.List):
                    parent[int(name)] = replacements[id(child)]
                else:
                    setattr(parent, name, replacements[id(child)])
    return model


def _children(parent: nnx.Module) -> Iterator[tuple[str, Any]]:
    if isinstance(parent, nnx.List):
        return ((str(index), child) for index, child in enumerate(parent))
    return iter(list(vars(parent).items()))

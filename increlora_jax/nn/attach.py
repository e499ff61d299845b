"""Put adapters on any NNX model, merge them into its kernels, and take them off again."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from increlora_jax.core.adapter import Scaling
from increlora_jax.errors import InputError
from increlora_jax.nn.layers import ADAPTED_TYPES, AdaptedLayer, LowRankAdapter, matrix_shape

ALL_LINEAR = "all-linear"
LAYERS = "Linear, LinearGeneral or Einsum layer"

Targets = str | Sequence[str]
"""A regex for the whole path, a list of names that end a path, or "all-linear"."""


def attach(
    model: nnx.Module,
    targets: Targets,
    *,
    exclude: Targets = (),
    max_rank: int | dict[str, int] = 8,
    initial_rank: int = 1,
    scaling: Scaling,
    dropout: float = 0.0,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
) -> nnx.Module:
    """Replace the targeted `Linear`, `LinearGeneral` and `Einsum` layers of `model`, in place.

    The replacements keep the layers' variables and names. `max_rank` is the number of slots, one
    for all or by path. A layer shared by several paths gets one adapter. Returns the model.

    Raises:
        InputError: a target that matches nothing, or a rank over a matrix.
    """
    replacements: dict[int, nnx.Module] = {}
    for path, layer in find_targets(model, targets, exclude).items():
        inputs, outputs = matrix_shape(layer)
        slots = max_rank[path] if isinstance(max_rank, dict) else max_rank
        _check_rank(path, initial_rank, inputs, outputs, slots)
        adapter = LowRankAdapter(
            inputs,
            outputs,
            max_rank=min(slots, inputs, outputs),
            initial_rank=initial_rank,
            scaling=scaling,
            dropout=dropout,
            rngs=rngs,
            dtype=dtype,
        )
        replacements[id(layer)] = ADAPTED_TYPES[type(layer)].wrap(layer, adapter)
    return _replace(model, replacements)


def detach(model: nnx.Module) -> nnx.Module:
    """Put plain layers back, in place, with their kernels as they are now: merged or not."""
    return _replace(model, {id(layer): layer.unwrap() for layer in adapted_layers(model).values()})


def merge(model: nnx.Module) -> nnx.Module:
    """W ← W + ΔW in every adapted layer, in place; `unmerge` restores W bit for bit."""
    for layer in adapted_layers(model).values():
        layer.merge()
    return model


def unmerge(model: nnx.Module) -> nnx.Module:
    """Undo `merge`, in place."""
    for layer in adapted_layers(model).values():
        layer.unmerge()
    return model


def adapted_layers(model: nnx.Module) -> dict[str, AdaptedLayer]:
    """Every adapted layer by path, in module order."""
    return {p: m for p, m in _modules(model).items() if isinstance(m, AdaptedLayer)}


def find_targets(
    model: nnx.Module, targets: Targets, exclude: Targets = ()
) -> dict[str, nnx.Module]:
    """The layers that `targets` selects and `exclude` does not, by path, in module order.

    Raises:
        InputError: a regex or a name that matches nothing; it names layers there are.
    """
    modules = _modules(model)
    if any(isinstance(module, AdaptedLayer) for module in modules.values()):
        raise InputError("the model has adapters already; detach them first")
    layers = {path: module for path, module in modules.items() if type(module) in ADAPTED_TYPES}
    chosen = _select(layers, targets, "target_modules", LAYERS)
    dropped = _select(layers, exclude, "exclude_modules", LAYERS) if exclude else set()
    found = {path: layer for path, layer in layers.items() if path in chosen - dropped}
    if not found:
        raise InputError(f"exclude {exclude!r} leaves none of the targets {targets!r}")
    return found


def target_sizes(
    model: nnx.Module, targets: Targets, exclude: Targets = ()
) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every target's kernel as a matrix; the model may be abstract."""
    found = find_targets(model, targets, exclude)
    return {path: matrix_shape(layer) for path, layer in found.items()}


def parameter_selector(model: nnx.Module, modules: Targets) -> Callable[[str], bool]:
    """A test of parameter paths: whether it belongs to one of the `modules`, said as targets.

    Raises:
        InputError: a name that no module of the model has.
    """
    chosen = _select(_modules(model), modules, "modules_to_save", "module")
    return lambda path: any(path.startswith(module + ".") for module in chosen)


def path_matches(path: str, patterns: Targets) -> bool:
    """Whether a regex matches the whole path, or one of a list of names ends it."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, path) is not None
    return any(path == name or path.endswith("." + name) for name in patterns)


def _select(modules: dict[str, nnx.Module], patterns: Targets, what: str, kind: str) -> set[str]:
    if patterns == ALL_LINEAR:
        return set(modules)
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        single = pattern if isinstance(patterns, str) else [pattern]
        try:
            has_match = any(path_matches(path, single) for path in modules)
        except re.error as error:
            raise InputError(f"{what}: {pattern!r} is not a regular expression: {error}") from None
        if not has_match:
            known = ", ".join(list(modules)[:8]) + (", …" if len(modules) > 8 else "")
            raise InputError(
                f"{what}: {pattern!r} matches no {kind} of the model, which has {len(modules)}: "
                f"{known}"
            )
    return {path for path in modules if path_matches(path, patterns)}


def _modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """Every module by dotted path, numbers in numeric order."""
    found = {path: module for path, module in nnx.iter_modules(model) if path}
    ordered = sorted(found, key=lambda path: [(isinstance(p, str), p) for p in path])
    return {".".join(map(str, path)): found[path] for path in ordered}


def _check_rank(path: str, rank: int, inputs: int, outputs: int, slots: int) -> None:
    if rank > min(inputs, outputs, slots):
        raise InputError(
            f"initial rank {rank} of {path} exceeds its {inputs} × {outputs} kernel or its "
            f"{slots} slots"
        )


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

"""Adapters for a parameter of any name and rank, which its module uses in any way."""

from functools import cache

from flax import nnx
from jaxtyping import Array

from increlora_jax.core.adapter import Adapter, Scaling, Slots
from increlora_jax.dropout import Dropout
from increlora_jax.errors import InputError
from increlora_jax.nn.effective import (
    EffectiveModule,
    EffectiveParameter,
    derive,
    effective_names,
    set_kind,
)
from increlora_jax.nn.kernels import KernelAxes, effective_weight
from increlora_jax.nn.low_rank import LowRankAdapter
from increlora_jax.quantization import Kernel


class ParameterAdapter(LowRankAdapter):
    """Adapter of one parameter, applied by effective weights: the module reads W + ΔW."""

    def __init__(self, adapter: Adapter, slots: Slots, scaling: Scaling, axes: KernelAxes):
        super().__init__(adapter, slots, scaling, Dropout(0.0))
        self.axes = axes
        self.original: nnx.Variable[Array] | None = nnx.data(None)  # the parameter before a merge

    def effective(self, kernel: Array) -> Array:
        """Compute W + ΔW in the adapter's precision, then round to that of W."""
        return effective_weight(kernel, self.axes, self.update, self.probe)


def _effective_of(name: str) -> EffectiveParameter:
    """Make the attribute of an adapted parameter."""

    def effective(module: nnx.Module, kernel: Kernel) -> Array | None:
        adapter = vars(module).get(adapter_name(name))
        if adapter is None or adapter.original is not None:
            return None
        return adapter.effective(kernel)

    return EffectiveParameter(name, effective)


def adapter_name(parameter: str) -> str:
    """Return the attribute of a parameter's adapter.

    The name has a dot, so that its path reads like that of a layer's adapter.
    """
    return f"{parameter}.adapter"


def adapt_parameter(module: nnx.Module, name: str, adapter: LowRankAdapter) -> None:
    """Make the module read its parameter with the adapter's update, in place."""
    names = sorted({*adapted_parameters(module), name})
    setattr(module, adapter_name(name), adapter)
    set_kind(module, _adapted_type(_plain_type(type(module)), tuple(names)))


def restore_parameters(module: nnx.Module) -> None:
    """Take the adapters off a module's parameters, in place; the parameters stay as they are."""
    for name in adapted_parameters(module):
        delattr(module, adapter_name(name))
    set_kind(module, _plain_type(type(module)))


def merge_parameter(module: nnx.Module, name: str) -> None:
    """W ← W + ΔW; the original W is kept for `unmerge_parameter`."""
    variable, adapter = vars(module)[name], vars(module)[adapter_name(name)]
    if adapter.original is not None:
        raise InputError("this parameter is merged already. Call unmerge first")
    # A variable of its own: other places that share the original keep its value.
    adapter.original, merged = variable, variable.copy()
    merged.set_value(adapter.effective(variable.get_value()))
    vars(module)[name] = merged


def unmerge_parameter(module: nnx.Module, name: str) -> None:
    """Put the original W back, bit for bit."""
    adapter = vars(module)[adapter_name(name)]
    if adapter.original is None:
        raise InputError("this parameter is not merged. Call merge first")
    vars(module)[name], adapter.original = adapter.original, nnx.data(None)


def adapted_parameters(module: nnx.Module) -> list[str]:
    """Return the names of a module's parameters that have an adapter."""
    return effective_names(type(module))


def _plain_type(kind: type[nnx.Module]) -> type[nnx.Module]:
    return kind.__bases__[0] if effective_names(kind) else kind


@cache
def _adapted_type(plain: type[nnx.Module], names: tuple[str, ...]) -> type[nnx.Module]:
    """Return a subclass that reads these parameters by effective weights."""
    attributes = {name: _effective_of(name) for name in names}
    return derive(plain, "Adapted", (plain, EffectiveModule), attributes)

"""Adapters for a parameter of any name and rank, used by its module in whatever way it likes."""

from functools import cache
from typing import Any

from flax import nnx
from jaxtyping import Array

from increlora_jax.nn.effective import EffectiveParameter, set_stored
from increlora_jax.nn.kernels import KernelAxes, effective_weight
from increlora_jax.nn.layers import LowRankAdapter, forget_attribute


class ParameterAdapter(LowRankAdapter):
    """The update of one parameter, applied by effective weights: the module reads W + ΔW."""

    def __init__(self, inputs: int, outputs: int, *, axes: KernelAxes, **settings: Any):
        super().__init__(inputs, outputs, **settings)
        self.axes = axes
        self.original: nnx.Variable | None = nnx.data(None)  # the parameter before a merge

    def effective(self, kernel: Array) -> Array:
        """W + ΔW in the adapter's precision, then rounded to W's."""
        return effective_weight(kernel, self.axes, self.update, self.probe)


def _effective_of(name: str) -> EffectiveParameter:
    """Make the attribute of an adapted parameter."""

    def effective(module: Any, kernel: Any) -> Any:
        adapter = vars(module).get(adapter_name(name))
        is_resting = adapter is None or adapter.original is not None
        return None if is_resting else adapter.effective(kernel)

    return EffectiveParameter(name, effective)


def adapter_name(parameter: str) -> str:
    """The attribute of a parameter's adapter: with a dot, so that its path reads like a layer's."""
    return f"{parameter}.adapter"


def adapt_parameter(module: nnx.Module, name: str, adapter: LowRankAdapter) -> None:
    """Make the module read its parameter with the adapter's update, in place."""
    names = sorted({*adapted_parameters(module), name})
    setattr(module, adapter_name(name), adapter)
    _set_type(module, _adapted_type(_plain_type(type(module)), tuple(names)))


def restore_parameters(module: nnx.Module) -> None:
    """Take the adapters off a module's parameters, in place; the parameters stay as they are."""
    for name in adapted_parameters(module):
        forget_attribute(module, adapter_name(name))
    _set_type(module, _plain_type(type(module)))


def merge_parameter(module: nnx.Module, name: str) -> None:
    """W ← W + ΔW, and rest the adapter; the original W is kept for `unmerge_parameter`."""
    variable, adapter = vars(module)[name], vars(module)[adapter_name(name)]
    if adapter.original is not None:
        raise ValueError("this parameter is merged already")
    # A variable of its own: other places that share the original keep its value.
    adapter.original, merged = variable, variable.copy()
    merged.set_value(adapter.effective(variable.get_value()))
    vars(module)[name] = merged


def unmerge_parameter(module: nnx.Module, name: str) -> None:
    """Put the original W back, bit for bit."""
    adapter = vars(module)[adapter_name(name)]
    if adapter.original is None:
        raise ValueError("this parameter is not merged")
    vars(module)[name], adapter.original = adapter.original, nnx.data(None)


def adapted_parameters(module: nnx.Module) -> list[str]:
    """The names of a module's parameters that have an adapter."""
    return _effective(type(module))


def _effective(kind: type) -> list[str]:
    return [name for name, value in vars(kind).items() if isinstance(value, EffectiveParameter)]


def _plain_type(kind: type) -> type:
    return kind.__bases__[0] if _effective(kind) else kind


def _set_type(module: nnx.Module, kind: type) -> None:
    object.__setattr__(module, "__class__", kind)  # past Flax's record of a module's attributes


@cache
def _adapted_type(plain: type, names: tuple[str, ...]) -> type:
    """The same class, which reads these parameters by effective weights."""

    def set_key(self: Any, key: Any, value: Any) -> None:
        if not set_stored(names, self, key, value):
            plain._graph_node_set_key(self, key, value)  # type: ignore[attr-defined]

    attributes: dict[str, Any] = {name: _effective_of(name) for name in names}
    attributes |= {"_graph_node_set_key": set_key, "__doc__": plain.__doc__}
    return type(plain)(f"Adapted{plain.__name__}", (plain,), attributes)

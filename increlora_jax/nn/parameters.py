"""Adapters for a parameter of any name and rank, which its module uses in any way."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial, partialmethod
from typing import Any

from flax import nnx
from jaxtyping import Array

from increlora_jax.core.adapter import Adapter, Scaling, Slots
from increlora_jax.core.probe import ScoreProbe
from increlora_jax.dropout import Dropout
from increlora_jax.errors import InputError
from increlora_jax.nn.effective import (
    EffectiveModule,
    EffectiveParameter,
    derive,
    effective_names,
    set_kind,
)
from increlora_jax.nn.kernels import EinsumAxes, KernelAxes, effective_weight
from increlora_jax.nn.layers import refuse_second_use
from increlora_jax.nn.low_rank import LowRankAdapter
from increlora_jax.quantization import Kernel


class ParameterAdapter(LowRankAdapter):
    """Adapter of one parameter: the module reads W + ΔW.

    With an equation, the module's call is given W, and the update is added as two products.

    Args:
        adapter: the first values of the parameters.
        slots: the first masks and births.
        scaling: the rule for s.
        dropout: of the input of the module's call.
        axes: of the parameter that make a matrix.
        equation: of the module's call; None if it uses the parameter in another way.
    """

    def __init__(
        self,
        adapter: Adapter,
        slots: Slots,
        scaling: Scaling,
        dropout: Dropout,
        axes: KernelAxes,
        equation: EinsumAxes | None,
    ):
        super().__init__(adapter, slots, scaling, dropout)
        self.axes, self.equation = axes, equation
        self.is_in_call = False
        self.original: nnx.Variable[Array] | None = nnx.data(None)  # the parameter before a merge

    @property
    def is_called(self) -> bool:
        """Return whether the module's call gives it an input."""
        return self.equation is not None

    @contextmanager
    def in_call(self) -> Iterator[None]:
        """Let the module read W meanwhile."""
        # Past Flax, which lets no transformation change a module that was made outside of it.
        vars(self)["is_in_call"] = True
        try:
            yield
        finally:
            vars(self)["is_in_call"] = False

    def effective(self, kernel: Array) -> Array:
        """Compute W + ΔW in the adapter's precision, then round to that of W."""
        probe = self.probe
        if self.equation is not None and isinstance(probe, ScoreProbe):
            probe = ScoreProbe.of(refuse_second_use, probe.value)
        return effective_weight(kernel, self.axes, self.update, probe)


def _effective_of(name: str) -> EffectiveParameter:
    """Make the attribute of an adapted parameter."""

    def effective(module: nnx.Module, kernel: Kernel) -> Array | None:
        adapter = vars(module).get(adapter_name(name))
        if adapter is None or adapter.original is not None or adapter.is_in_call:
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
    attributes: dict[str, object] = {name: _effective_of(name) for name in names}
    if len(names) == 1:
        attributes["__call__"] = partialmethod(_call, plain, names[0])
    return derive(plain, "Adapted", (plain, EffectiveModule), attributes)


def _call(
    module: nnx.Module, plain: type[nnx.Module], name: str, *inputs: Any, **more: Any
) -> Any:  # as the plain class
    """Call a module, with the update as two products if its equation is known."""
    adapter, variable = vars(module)[adapter_name(name)], vars(module)[name]
    if adapter.original is not None or adapter.equation is None:
        return plain.__call__(module, *inputs, **more)
    if len(inputs) == 1 and not more:
        with adapter.in_call():
            y = plain.__call__(module, *inputs)  # reads W
        equation, x = adapter.equation, inputs[0].astype(y.dtype)
        from_rows = partial(equation.from_rows, kernel_shape=variable.shape)
        return adapter.add_to(y, x, equation.to_rows, from_rows)
    if adapter.dropout.rate and not adapter.dropout.deterministic:
        raise InputError(
            f"an adapted {plain.__name__} is called with more than its input, and dropout of the "
            "input is only known for a call with that alone. Set lora_dropout to 0"
        )
    return plain.__call__(module, *inputs, **more)

"""The adapter of one kernel as an NNX module."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from increlora_jax.core.adapter import Adapter, Scaling, Slots, Update, effective_update
from increlora_jax.core.meshes import on_any_mesh
from increlora_jax.core.probe import Probe, Score, ScoreProbe
from increlora_jax.core.product import apply_sum, apply_update, is_sum_cheaper
from increlora_jax.dropout import Dropout
from increlora_jax.errors import InputError

Arrange = Callable[[Array], Array]


class AdapterParam(nnx.LoRAParam):
    """Trainable array of an adapter; other trainers know it as an `nnx.LoRAParam`.

    Args:
        value: A [inputs, slots], λ [slots] or B [slots, outputs], after the axes of a stack.

    >>> import jax.numpy as jnp
    >>> import increlora_jax as il
    >>> il.AdapterParam(jnp.zeros((4, 8))).shape
    (4, 8)
    """


class SlotState(nnx.Variable[Array]):
    """Mask or birth of an adapter's slots, which is never differentiated.

    Args:
        value: an array of `Slots` [slots] or [], after the axes of a stack.

    >>> import jax.numpy as jnp
    >>> import increlora_jax as il
    >>> issubclass(il.SlotState, nnx.Param)
    False
    """


def _has_room(slots: Slots) -> bool:
    """Return whether some slots are dormant; False of a model that is abstract."""
    try:
        return not bool(slots.active.all())
    except jax.errors.ConcretizationTypeError:
        return False


@jax.custom_jvp
def _warn_if_trained(lam: Array) -> Array:
    """Return λ; a warning if it is differentiated, by a loop in which ranks do not grow."""
    return lam


@_warn_if_trained.defjvp
def _warn_of_training(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    warnings.warn(
        "a model with adapters is differentiated outside of a trainer: A, λ and B learn, and no "
        "rank grows. Train with il.prepare, or give the optimizer il.growth(model, …)",
        stacklevel=2,
    )
    return primals[0], tangents[0]


class LowRankAdapter(nnx.Module):
    """Module that computes s · ((dropout(x)·A) ∘ λ̂) · B; see `core.adapter`.

    Args:
        adapter: the first values of the parameters.
        slots: the first masks and births.
        scaling: the rule for s.
        dropout: of x.
    """

    def __init__(self, adapter: Adapter, slots: Slots, scaling: Scaling, dropout: Dropout):
        for name, value in adapter._asdict().items():
            setattr(self, name, AdapterParam(value))
        for name, value in slots._asdict().items():
            setattr(self, name, SlotState(value))
        self.dropout = dropout
        self.scaling = scaling
        self.has_room = _has_room(slots)  # slots that only a trainer or `il.growth` opens
        self.scale: SlotState | None = nnx.data(None)  # s where it does not follow `scaling`
        # A variable, so that filters of `nnx.StateAxes` find it.
        self.probe_value: SlotState | None = nnx.data(None)
        self.probe_kind: tuple[type[Any], Score | None] | None = None

    @property
    def probe(self) -> Probe | None:
        """Return the probe of the present forward pass."""
        if self.probe_value is None or self.probe_kind is None:
            return None
        kind, score = self.probe_kind
        value = self.probe_value[...]
        found: Probe = kind(value) if score is None else ScoreProbe.of(score, value)
        return found

    def set_probe(self, probe: Probe | None) -> None:
        """Give the next forward pass a probe, or none."""
        score = probe.score.func if isinstance(probe, ScoreProbe) else None
        self.probe_kind = None if probe is None else (type(probe), score)
        self.probe_value = nnx.data(None if probe is None else SlotState(probe.value))

    @property
    def is_called(self) -> bool:
        """Return whether a forward pass calls it with an input, as that of a layer."""
        return True

    @property
    def parameters(self) -> Adapter:
        """Return the trainable arrays."""
        return Adapter(*(getattr(self, name)[...] for name in Adapter._fields))

    @property
    def slots(self) -> Slots:
        """Return the masks and births."""
        return Slots(*(getattr(self, name)[...] for name in Slots._fields))

    @property
    def update(self) -> Update:
        """Return the update at the present parameters and masks."""
        scaling = self.scaling if self.scale is None else self.scale[...]
        parameters = self.parameters
        if self.has_room and self.scale is None:
            parameters = parameters._replace(lam=_warn_if_trained(parameters.lam))
        return effective_update(parameters, self.slots, scaling)

    def add_to(self, y: Array, x: Array, to_rows: Arrange, from_rows: Arrange) -> Array:
        """Add the adapter's part to the output y of a layer with input x.

        Args:
            y: the layer's own output.
            x: the layer's input.
            to_rows: arranges x as rows of inputs.
            from_rows: arranges rows of outputs as y.

        Raises:
            InputError: a stack of layers that is called as a whole, or not sliced as a whole.
        """
        update = self._one_update()  # before dropout, whose streams it checks

        def apply(x: Array, update: Update, drop: Arrange, probe: Probe | None) -> Array:
            return from_rows(apply_update(drop(to_rows(x)), update, probe)).astype(y.dtype)

        return y + on_any_mesh(apply, x, update, self.dropout.take(), self.probe, like=y)

    def is_best_summed(self, rows: int, dtype: DTypeLike) -> bool:
        """Return whether ΔW is best added to the kernel of a product of so many rows.

        Only a CPU multiplies float32 exactly enough: another device rounds the factors of a
        product, and a small ΔW would vanish.
        """
        update = self._one_update()
        is_plain = self.dropout.rate == 0 or bool(self.dropout.deterministic)
        is_exact = dtype == update.A.dtype and jax.default_backend() == "cpu"
        return is_plain and is_exact and is_sum_cheaper(rows, update)

    def apply_sum(self, x: Array, kernel: Array) -> Array:
        """Compute x · (W + ΔW), without dropout."""
        return apply_sum(x, kernel, self._one_update(), self.probe)

    def _one_update(self) -> Update:
        update, streams = self.update, self.dropout.rngs
        is_sliced = streams is None or streams.key[...].shape == ()
        if len(update.A.shape) != 2 or len(update.slots.active.shape) != 1 or not is_sliced:
            raise InputError(
                f"an adapter with A {list(update.A.shape)} and masks "
                f"{list(update.slots.active.shape)} is called as if it were one layer's; where "
                "nnx.scan or nnx.vmap slices a stack of layers, it must slice all of its state, as "
                "in_axes=0 does (with nnx.StateAxes: {(nnx.Param, il.SlotState, nnx.RngState): 0})"
            )
        return update

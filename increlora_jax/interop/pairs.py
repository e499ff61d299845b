"""Growth of the pairs of matrices that other libraries train as LoRA, without a λ of their own.

A host multiplies by c · a · b, with b = 0 at the start, as qwix (`lora_a`, `lora_b`) and gemma
(`lora.a`, `lora.b`) do. A, λ and B are in the optimizer's state, and the host sees their image:
a = A and b = (s/c) · diag(λ̂) · B.
"""

import warnings
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, PyTree

from increlora_jax.core.adapter import Adapter, Slots, effective_lambda
from increlora_jax.core.optimizer import Trainable
from increlora_jax.core.probe import Probe, SlotProbe
from increlora_jax.errors import InputError
from increlora_jax.interop.growth_state import (
    GrowthState,
    Path,
    as_loss,
    begin,
    check_given,
    leaves_by_path,
    pack,
    path_of,
    unpack,
)
from increlora_jax.nn.kernels import KernelAxes
from increlora_jax.training.state import TrainState
from increlora_jax.training.step import Gradients, Trainer

ENDS = {"lora_a": "lora_b", "a": "b"}
"""The end of the name of a → that of b; `a` and `b` are inside of something called lora."""


class Pairs(NamedTuple):
    """Rule by which a host applies its pairs.

    Attributes:
        scale: c, the factor of a · b in the host's forward pass: alpha / rank in qwix, 1 in gemma.
        stack: leading axes that are a stack of layers. Default: as many as the shapes say.

    >>> import increlora_jax as il
    >>> il.Pairs(scale=16 / 8).scale
    2.0
    """

    scale: float
    stack: int | None = None


class Pair(NamedTuple):
    """A pair of a host: the paths of its arrays, and their shapes as matrices."""

    a: Path
    b: Path
    stack: tuple[int, ...]
    inputs: int
    slots: int
    outputs: int

    @property
    def dense(self) -> jax.ShapeDtypeStruct:
        """Return the shape of a · b."""
        return jax.ShapeDtypeStruct((*self.stack, self.inputs, self.outputs), jnp.float32)

    def matrices(self, held: Mapping[Path, Array]) -> tuple[Array, Array]:
        """Return a [*stack, inputs, slots] and b [*stack, slots, outputs] in float32 at least."""
        a = held[self.a].reshape(*self.stack, self.inputs, self.slots)
        b = held[self.b].reshape(*self.stack, self.slots, self.outputs)
        wide = jnp.promote_types(a.dtype, jnp.float32)
        return a.astype(wide), b.astype(wide)


def find_pairs(model: nnx.Module | PyTree, how: Pairs) -> dict[str, Pair]:
    """Return the pairs of an NNX module or of a tree of parameters by the path of their module.

    Raises:
        InputError: there is none, or one that is not of the stack.
    """
    held = leaves_by_path(_parameters_of(model))
    found = {}
    for path in held:
        name, other = _name_of(path)
        if other in held:
            found[name] = _measure(name, held[path].shape, held[other].shape, how, (path, other))
            _warn_of_learned(name, held[other])
    if not found:
        raise InputError(
            "growth: pairs=… is given, and the model has no lora_a and lora_b, nor lora.a and "
            "lora.b. Leave pairs out, and il.growth attaches adapters of its own"
        )
    widths = {pair.slots for pair in found.values()}
    if len(widths) > 1:
        raise InputError(
            f"growth: the pairs have ranks {', '.join(map(str, sorted(widths)))}, and every "
            "module needs the same number of slots. Give all of them one rank"
        )
    return found


def _warn_of_learned(name: str, b: Any) -> None:
    if isinstance(b, jax.Array) and not isinstance(b, jax.core.Tracer) and bool(jnp.any(b != 0)):
        warnings.warn(
            f"growth: {name} has learned already, and b is set to 0 at the first step: growth "
            "begins with no update. Only a restored state of this growth continues from it",
            stacklevel=4,
        )


def names_of_pairs(model: nnx.Module | PyTree) -> list[str]:
    """Return the paths of the modules that have a pair."""
    held = leaves_by_path(_parameters_of(model))
    named = [_name_of(path) for path in held]
    return [name for name, other in named if other in held]


def _parameters_of(model: nnx.Module | PyTree) -> PyTree:
    return nnx.state(model, nnx.LoRAParam) if isinstance(model, nnx.Module) else model


def _name_of(path: Path) -> tuple[str, Path | None]:
    """Return the name of the module of an array a, and the path of its b; None of others."""
    *inside, last = path
    end = next((end for end in ENDS if last == end or last.endswith(f"_{end}")), None)
    is_short = end == "a"
    if end is None or (is_short and not (inside and "lora" in inside[-1].lower())):
        return "", None
    stem = last[: -len(end)]
    own = inside[:-1] if is_short else [*inside, *([stem.removesuffix("_")] if stem else [])]
    return ".".join(own), (*inside, stem + ENDS[end])


def _measure(
    name: str, a: tuple[int, ...], b: tuple[int, ...], how: Pairs, paths: tuple[Path, Path]
) -> Pair:
    slots, most = a[-1], min(len(a), len(b)) - 2
    fitting = [d for d in range(most + 1) if a[:d] == b[:d] and b[d] == slots]
    told = fitting if how.stack is None else [d for d in fitting if d == how.stack]
    if len(told) != 1:
        raise InputError(
            f"growth: {name} has a {list(a)} and b {list(b)}: a ends with the rank, and b begins "
            "with it after the axes of a stack of layers. So they are "
            + ("no pair" if not fitting else f"one with stack={' or '.join(map(str, fitting))}")
            + (". Give that to il.Pairs" if fitting else ". Such a pair cannot grow")
        )
    (depth,) = told
    found = Pair(*paths, a[:depth], prod(a[depth:-1]), slots, prod(b[depth + 1 :]))
    if slots > min(found.inputs, found.outputs):
        raise InputError(
            f"growth: {name} has a pair of rank {slots}, more than its {found.inputs} × "
            f"{found.outputs} matrix can have. Make the pair narrower, or leave it out of the model"
        )
    return found


def as_tree(pairs: Mapping[str, Pair]) -> tuple[dict[str, Any], dict[str, KernelAxes]]:
    """Return the products of pairs as a tree of abstract matrices, and its declared axes."""
    return {name: pair.dense for name, pair in pairs.items()}, {
        r"(?s:.*)": KernelAxes((-2,), (-1,))
    }


class PairRule(NamedTuple):
    """The transformation: a trainer's update of A, λ and B, of which a and b are the image."""

    trainer: Trainer
    first: TrainState
    pairs: Mapping[str, Pair]
    scale: float
    needs_value: bool

    def init(self, params: PyTree) -> GrowthState:
        """Begin with the host's a."""
        held = leaves_by_path(params)
        _check_complete(self.pairs, held)
        begun = {
            name: self.first.params.adapter[name]._replace(A=pair.matrices(held)[0])
            for name, pair in self.pairs.items()
        }
        optimizer = self.trainer.optimizer(self.trainer.settings)
        opt_state = optimizer.init(Trainable(begun, self._others(held)))
        return begin(self.first._replace(params=Trainable(begun, {}), opt_state=opt_state))

    def update(
        self,
        updates: PyTree,
        packed: GrowthState,
        params: PyTree = None,
        *,
        value: Array | None = None,  # of the loss, for optimizers that follow it
        **_: PyTree,
    ) -> tuple[PyTree, GrowthState]:
        """Return the moves of the host's arrays to the image of the new A, λ and B."""
        check_given(params, value, needs_value=self.needs_value)
        state, found = unpack(packed), leaves_by_path(updates)
        head, of_head = self._others(leaves_by_path(params)), self._others(found)
        gradients = {}
        for name, pair in self.pairs.items():
            own = state.params.adapter[name]
            factor, (d_a, d_b) = self._factor(state, name), pair.matrices(found)
            of_lambda = jnp.sum(d_b * own.B, -1) * self._ratio(state, name)
            gradients[name] = Adapter(d_a, of_lambda, d_b * factor[..., None])
        evidence: dict[Any, Probe] = {n: SlotProbe(own.lam) for n, own in gradients.items()}
        new, _info = self.trainer.update(
            state._replace(params=state.params._replace(head=head)),
            Gradients(as_loss(value), Trainable(gradients, of_head), evidence),
        )
        images = {
            path: image for name in self.pairs for path, image in self._image(new, name).items()
        }

        def move(keys: tuple[Any, ...], leaf: Array) -> Array:
            path = path_of(keys)
            image = new.params.head[".".join(path)] if path not in images else images[path]
            return (image.reshape(leaf.shape) - leaf).astype(leaf.dtype)

        moves = jax.tree_util.tree_map_with_path(move, params)
        return moves, pack(new._replace(params=new.params._replace(head={})))

    def _others(self, held: Mapping[Path, Array]) -> dict[str, Array]:
        """Return the arrays that are in no pair, which learn in full."""
        own = {path for pair in self.pairs.values() for path in (pair.a, pair.b)}
        return {".".join(path): leaf for path, leaf in held.items() if path not in own}

    def _ratio(self, state: TrainState, name: str) -> Array:
        """Return s / c [*stack, 1]."""
        rules = self.trainer.skeleton.rules
        assert rules is not None
        own = state.params.adapter[name]
        s = rules.scaling.given(state.settings)(state.slots[name].rank, own.lam.dtype)
        return s[..., None] / self.scale

    def _factor(self, state: TrainState, name: str) -> Array:
        """Return s/c · λ̂ [*stack, slots]."""
        lam_hat = effective_lambda(state.params.adapter[name], state.slots[name])
        return self._ratio(state, name) * lam_hat

    def _image(self, state: TrainState, name: str) -> dict[Path, Array]:
        own, pair = state.params.adapter[name], self.pairs[name]
        return {pair.a: own.A, pair.b: self._factor(state, name)[..., None] * own.B}


def _check_complete(pairs: Mapping[str, Pair], held: Mapping[Path, Array]) -> None:
    wanted = [path for pair in pairs.values() for path in (pair.a, pair.b)]
    if missing := sorted(".".join(path) for path in wanted if path not in held):
        raise InputError(
            f"growth: the optimizer does not get {missing[0]}. Give it all pairs, as "
            "nnx.Optimizer(model, …, wrt=nnx.LoRAParam) does"
        )


def settle_pairs(model: PyTree, slots: Mapping[str, Slots]) -> PyTree:
    """Set b to 0 in all slots that are not active; of an NNX module in place."""
    parameters = _parameters_of(model)
    held = leaves_by_path(parameters)
    active = {}
    for path in held:
        name, other = _name_of(path)
        if name in slots and other in held:
            active[other] = slots[name].active
    if len(active) < len(slots):
        raise InputError(
            f"settle: the optimizer grows {', '.join(slots)}, and the model has neither adapters "
            "nor pairs there. Give the model that il.growth was given"
        )

    def settle(keys: tuple[Any, ...], leaf: Array) -> Array:
        mask = active.get(path_of(keys))
        if mask is None:
            return leaf
        return leaf * mask.reshape(*mask.shape, *[1] * (leaf.ndim - mask.ndim)).astype(leaf.dtype)

    settled = jax.tree_util.tree_map_with_path(settle, parameters)
    if not isinstance(model, nnx.Module):
        return settled
    nnx.update(model, settled)
    return model


def as_transformation(rule: PairRule) -> optax.GradientTransformationExtraArgs:
    """Return a rule as optax takes it."""
    return optax.GradientTransformationExtraArgs(rule.init, rule.update)

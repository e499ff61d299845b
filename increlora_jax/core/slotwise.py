"""Any optax transformation for slots that are born at different steps."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from increlora_jax.core.adapter import Adapter, over_stack
from increlora_jax.core.optimizer import Trainable, mask_unborn
from increlora_jax.core.stacking import is_stacked, stack_dicts, unstack_dicts
from increlora_jax.errors import InputError

Updated = tuple[PyTree, PyTree]

Kind = Literal["slotwise", "mixing", "adapted"]
"""Slots as if each was alone; entries of a matrix mixed; by parts that know of slots."""


class SlotwiseState(NamedTuple):
    """States of a transformation.

    Attributes:
        adapter: by module, for each of its arrays, with leading axes [*stack, slots].
        head: of all other parameters together.
    """

    adapter: dict[Any, Adapter]
    head: PyTree


def slotwise(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Give every slot a state of its own, which begins at the slot's birth.

    The slot's column of A, its λ and its row of B each are one parameter of the transformation. Its
    counts, and with them bias corrections and schedules, count from birth. Before birth the state
    and the parameter do not change. Other parameters than adapters have one state together.

    Args:
        transformation: one that treats every entry of a parameter alike, as Adam and Lion do.

    Returns:
        A transformation of a trainer's parameters, for `il.prepare(…, optimizer=…)`. Its `update`
        takes the extra arguments `step` and `born`.

    >>> import increlora_jax as il, jax.numpy as jnp, optax
    >>> params = {"w": jnp.ones((4, 4))}
    >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), il.slotwise(optax.lion(1e-3)))
    >>> _, state, _ = il.prepare(params, il.lora(params), total_steps=10, optimizer=optimizer)
    >>> int(state.total_rank)
    2
    """
    rule = _Slotwise(optax.with_extra_args_support(transformation))
    return optax.GradientTransformationExtraArgs(rule.init, rule.update)


class _Slotwise(NamedTuple):
    """Rule of `slotwise`: u, s ← f(g, s, p) from birth on, with s = f.init(p) at birth."""

    inner: optax.GradientTransformationExtraArgs

    def init(self, params: Trainable) -> SlotwiseState:
        adapter = jax.tree.map(self._init_module, params.adapter, is_leaf=_is_adapter)
        return SlotwiseState(adapter, self.inner.init(params.head))

    def _init_module(self, adapter: Adapter) -> Adapter:
        return Adapter(*_by_array(self.inner.init, _OF_SLOT, _slots_first(adapter)))

    def update(
        self,
        updates: Trainable,
        state: SlotwiseState,
        params: Trainable,
        *,
        step: Array,
        born: Trainable,
        **extra: PyTree,
    ) -> tuple[Trainable, SlotwiseState]:
        structure: Any
        own, structure = jax.tree.flatten(params.adapter, is_leaf=_is_adapter)
        trees = (updates.adapter, state.adapter, born.adapter)
        given = zip(own, *map(structure.flatten_up_to, trees), strict=True)
        moved = [self._move_module(step, extra, *module) for module in given]
        adapter, states = (structure.unflatten(part) for part in zip(*moved, strict=True))
        head, head_state = self.inner.update(updates.head, state.head, params.head, **extra)
        return Trainable(adapter, head), SlotwiseState(states, head_state)

    def _move_module(
        self,
        step: Array,
        extra: dict[str, PyTree],
        params: Adapter,
        updates: Adapter,
        states: Adapter,
        born: Adapter,
    ) -> tuple[Adapter, Adapter]:
        move = partial(self._move, step, extra)
        since = Adapter(_squeeze(born.A, -2), born.lam, _squeeze(born.B, -1))  # [*stack, slots]
        trees = (_slots_first(updates), states, _slots_first(params), since)
        moved = _by_array(move, _OF_SLOT, *trees)
        update, new = (Adapter(*fields) for fields in zip(*moved, strict=True))
        return _slots_first(update), new

    def _move(
        self, step: Array, extra: dict[str, PyTree], g: Array, state: PyTree, p: Array, born: Array
    ) -> Updated:
        """Move one slot's part of an array."""

        def choose(condition: Array, new: PyTree, old: PyTree) -> PyTree:
            return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)

        begun = choose(step <= born, self.inner.init(p), state)
        update, new = self.inner.update(g, begun, p, **extra)
        is_born = step >= born
        return choose(is_born, update, jax.tree.map(jnp.zeros_like, p)), choose(is_born, new, state)


def _is_adapter(node: PyTree) -> bool:
    return isinstance(node, Adapter)


def _is_array(own: PyTree) -> bool:
    return not isinstance(own, optax.MaskedNode)


def _slots_first(adapter: Adapter) -> Adapter:
    """Swap the axes of A, [*stack, inputs, slots]; also undoes itself."""
    return adapter._replace(A=jnp.swapaxes(adapter.A, -1, -2)) if _is_array(adapter.A) else adapter


def _squeeze(born: Array, axis: int) -> Array:
    return jnp.squeeze(born, axis) if _is_array(born) else born


_OF_SLOT, _OF_MATRIX = (1, 0, 1), (2, 1, 2)
"""Axes of A, λ and B within one slot and within one matrix, slots first."""


def _by_array(
    function: Callable[..., Any], axes: tuple[int, int, int], adapter: Adapter, *more: Adapter
) -> list[Any]:
    """Map a function over all but the last `axes` of each array; one that is masked stays so."""
    blank = optax.MaskedNode()
    return [
        over_stack(function, own.ndim - count)(own, *others)
        if _is_array(own)
        else ((blank, blank) if others else blank)
        for own, count, *others in zip(adapter, axes, *more, strict=True)
    ]


def matrixwise(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply a transformation to every array of every module by itself, stacked or not."""

    def init(params: Trainable) -> PyTree:
        by_array = partial(_by_array, transformation.init, _OF_MATRIX)
        return {name: Adapter(*by_array(own)) for name, own in params.adapter.items()}

    def update(updates: Trainable, state: PyTree, params: Trainable) -> Updated:
        by_array = partial(_by_array, transformation.update, _OF_MATRIX)
        adapter, new = {}, {}
        for name, own in updates.adapter.items():
            moved = by_array(own, state[name], params.adapter[name])
            adapter[name], new[name] = (Adapter(*fields) for fields in zip(*moved, strict=True))
        return updates._replace(adapter=adapter), new

    return optax.GradientTransformation(init, update)


def whole(transformation: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Apply a transformation to all parameters at once, with every matrix as one parameter.

    Unborn slots have no gradient and no update. The transformation's counts are those of the run.
    """
    rule = _Whole(optax.with_extra_args_support(transformation))
    return optax.GradientTransformationExtraArgs(rule.init, rule.update)


class _Whole(NamedTuple):
    """Rule of `whole`: u, s ← f(g, s, p), with g and u 0 before birth."""

    inner: optax.GradientTransformationExtraArgs

    def init(self, params: Trainable) -> PyTree:
        return self.inner.init(_split_stacks(params, params))

    def update(
        self,
        updates: Trainable,
        state: PyTree,
        params: Trainable,
        *,
        step: Array,
        born: Trainable,
        **extra: PyTree,
    ) -> Updated:
        keys, given = tuple(params.adapter), (updates, state, params, born)
        is_in_groups = is_stacked(params.adapter)
        updates, state, params, born = unstack_dicts(keys, given) if is_in_groups else given
        masked = mask_unborn(updates, born, step)
        split = [_split_stacks(tree, params) for tree in (masked, params, born)]
        moved, new = self.inner.update(split[0], state, split[1], step=step, born=split[2], **extra)
        joined = mask_unborn(_join_stacks(moved, params), born, step)
        return stack_dicts(keys, (joined, new)) if is_in_groups else (joined, new)


def _split_stacks(tree: Trainable, params: Trainable) -> Trainable:
    """Replace every adapter with stack axes by the list of its matrices' adapters."""

    def split(own: Adapter, stack: tuple[int, ...]) -> Any:
        flat = jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[len(stack) :])), own)
        count = prod(stack)
        return [jax.tree.map(lambda x, i=i: x[i], flat) for i in range(count)] if stack else own

    stacks = {name: own.lam.shape[:-1] for name, own in params.adapter.items()}
    return tree._replace(adapter={n: split(own, stacks[n]) for n, own in tree.adapter.items()})


def _join_stacks(tree: Trainable, params: Trainable) -> Trainable:
    """Undo `_split_stacks`."""

    def join(pieces: Any, like: Adapter) -> Adapter:
        if isinstance(pieces, Adapter):
            return pieces
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pieces)
        return jax.tree.map(lambda x, p: x.reshape(p.shape), together, like)

    own = params.adapter
    return tree._replace(adapter={name: join(p, own[name]) for name, p in tree.adapter.items()})


_SCALES = (1.0, 1e3, 1e-3, 1.0, 1e3, 1.0)
"""Sizes of the gradients of a trial's steps: a clip must bite, and a warmup from 0 must begin."""


def find_kind(transformation: optax.GradientTransformation) -> Kind:
    """Return how a transformation treats the slots of an array.

    Some updates of a matrix are compared with those of its slots. Its sides are as long as those
    from which Adafactor keeps rows and columns.

    Raises:
        InputError: it cannot be tried.
    """
    rules = (slotwise(transformation), optax.with_extra_args_support(transformation))
    try:
        alone, together = map(_try, rules)
    except AttributeError as error:
        if "adapter" in str(error):
            return "adapted"  # a part of it asks for modules, as `slotwise` does
        raise _refusal(error) from error
    except (TypeError, ValueError, KeyError):
        return "mixing"  # it needs the very parameters that it was made for
    except IndexError as error:
        raise _refusal(error) from error
    pairs = list(zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True))
    has_moved = any(np.any(whole) for _, whole in pairs)
    is_alike = all(
        np.allclose(own, whole, rtol=1e-4, atol=1e-4 * np.abs(whole).max()) for own, whole in pairs
    )
    return "slotwise" if has_moved and is_alike else "mixing"


def _try(rule: optax.GradientTransformationExtraArgs) -> list[PyTree]:
    """Return a rule's updates of a module with fixed gradients of several sizes."""
    side, draw = 128, np.random.default_rng(0)

    def make(scale: float) -> Trainable:
        shapes = (side, side), (side,), (side, side)
        arrays = (jnp.asarray(scale * draw.normal(size=s), jnp.float32) for s in shapes)
        return Trainable({"module": Adapter(*arrays)}, {})

    params = make(1.0)
    zeros = Adapter(jnp.zeros((1, side)), jnp.zeros(side), jnp.zeros((side, 1)))
    when = {"born": Trainable({"module": zeros}, {}), "value": jnp.ones(())}
    update = jax.jit(lambda *given, step: rule.update(*given, **when, step=step))
    state, moved = rule.init(params), []
    for step, scale in enumerate(_SCALES):
        found, state = update(make(scale), state, params, step=step)
        params = optax.apply_updates(params, found)
        moved.append(jax.device_get(found))
    return moved


def _refusal(error: Exception) -> InputError:
    return InputError(
        f"optimizer: its updates cannot be tried ({type(error).__name__}: {error}). Give a "
        "transformation whose update takes gradients, its state and the parameters"
    )

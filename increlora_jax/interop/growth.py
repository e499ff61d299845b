"""Growth as an optax transformation, for the training loops of other people.

A host's loop sees an ordinary transformation of `nnx.LoRAParam`s. Masks, births and averages are in
its state, and with it in the host's checkpoints. The model applies every slot with the λ that it
has; the transformation moves λ so that this is what a trainer's masks would give.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, PyTree

from increlora_jax.config import GrowthConfig, TrainingConfig
from increlora_jax.core.adapter import Adapter, Scaling, Slots, effective_lambda
from increlora_jax.core.importance import (
    Evidence,
    ImportanceFunction,
    sensitivity,
)
from increlora_jax.core.optimizer import Trainable
from increlora_jax.core.probe import Probe, ScoreProbe, SlotProbe
from increlora_jax.errors import InputError
from increlora_jax.interop.growth_state import (
    GrowthState,
    Path,
    as_loss,
    begin,
    check_given,
    find_slots,
    follows_loss,
    leaves_by_path,
    pack,
    path_of,
    unpack,
    without_parameters,
)
from increlora_jax.interop.pairs import (
    PairRule,
    Pairs,
    as_transformation,
    as_tree,
    find_pairs,
    names_of_pairs,
    settle_pairs,
)
from increlora_jax.interop.scores import Scores
from increlora_jax.methods.base import Arguments
from increlora_jax.methods.increlora import choose_importance, increlora
from increlora_jax.nn.attach import adapters_of
from increlora_jax.nn.kernels import stack_names
from increlora_jax.nn.low_rank import LowRankAdapter
from increlora_jax.training.prepare import prepare
from increlora_jax.training.state import TrainState
from increlora_jax.training.step import Gradients, Trainer

Adapters = Mapping[str, Adapter]
Place = tuple[str, str]
"""The name of an adapter, and its array."""

Prepared = tuple[Trainer, TrainState]

_DEFAULT_SCORE = "lambda_gradient"

AS_IT_IS = Scaling(1.0, "target", 1.0)
"""The rule of a model whose λ already holds the scale."""


def growth(
    model: nnx.Module | PyTree,
    optimizer: optax.GradientTransformation | None = None,
    *,
    steps: int,
    config: TrainingConfig = TrainingConfig(),
    importance: ImportanceFunction | None = None,
    is_scored_by_host: bool = False,
    pairs: Pairs | None = None,
    seed: int = 0,
    **given: Unpack[Arguments],
) -> optax.GradientTransformationExtraArgs:
    """Attach growing adapters to a model, in place; return the transformation that grows them.

    Args:
        model: an NNX module, which the host trains. With `pairs`, also a tree of parameters.
        optimizer: any optax transformation; default: the AdamW of `config`.
        steps: optimizer steps of the run.
        config: settings of that AdamW; default: its defaults.
        importance: default: `lambda_gradient`, or the paper's if the host scores.
        is_scored_by_host: whether updates get scores of `il.scored_value_and_grad`; default: no.
        pairs: how the host applies LoRA of its own, which grows instead; default: it has none.
        seed: of all random numbers; default 0.
        **given: as of `il.increlora`.

    Returns:
        A transformation of the model's `nnx.LoRAParam`s. It may get other parameters, too.

    Raises:
        InputError: a score of a dense gradient, or an error of `il.increlora`.

    >>> import increlora_jax as il
    >>> model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    >>> il.ranks_of(nnx.Optimizer(model, il.growth(model, steps=99), wrt=nnx.LoRAParam))
    {'layers.0': 1}
    """
    score = _choose_score(importance, given.get("growth", GrowthConfig()), is_scored_by_host)
    wanted = _Wanted(optimizer, config, score, steps, seed, given)
    return _of_adapters(model, wanted) if pairs is None else _of_pairs(model, pairs, wanted)


class _Wanted(NamedTuple):
    """Wishes of a host, but for its model."""

    optimizer: optax.GradientTransformation | None
    config: TrainingConfig
    score: ImportanceFunction
    steps: int
    seed: int
    given: Arguments

    def prepare(self, model: nnx.Module | PyTree, **more: Unpack[Arguments]) -> Prepared:
        """Return a trainer of the model, and its first state; an NNX module gets adapters."""
        given = self.given | more
        if self.config.gradient_accumulation_steps != 1:
            raise InputError(
                "growth: gradient_accumulation_steps is for trainers of il.prepare. Accumulate in "
                "the host's loop, or by optax.MultiSteps around il.growth(…)"
            )
        method = increlora(model, steps=self.steps, importance=self.score, **given)
        assert method.steps is not None
        trainer, state, _ = prepare(
            model,
            method,
            self.config,
            total_steps=method.steps,
            optimizer=self.optimizer,
            seed=self.seed,
            dtype=given.get("dtype", jnp.float32),
        )
        return trainer, state


def _of_adapters(model: nnx.Module, wanted: _Wanted) -> optax.GradientTransformationExtraArgs:
    """Return the transformation of adapters of our own."""
    if not isinstance(model, nnx.Module):
        raise InputError(
            f"growth: a {type(model).__name__} is no NNX module. A tree of parameters with LoRA of "
            "its own grows by pairs=il.Pairs(scale=…); others, and Linen, train by il.prepare"
        )
    if names := names_of_pairs(model):
        raise InputError(
            f"growth: {names[0]} has LoRA of its own, and two updates of one matrix would add up. "
            "To grow it, say how the model applies it: pairs=il.Pairs(scale=alpha / rank)"
        )
    trainer, first = wanted.prepare(model)
    needs_value = follows_loss(wanted.optimizer)
    rule = _Rule(trainer, first, _leaves_of(model), wanted.score, needs_value)
    return _open(model, rule)


def _of_pairs(
    model: nnx.Module | PyTree, how: Pairs, wanted: _Wanted
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation of a host's own pairs, planned on their products."""
    if wanted.score.evidence is Evidence.DENSE:
        raise InputError("growth: is_scored_by_host is for adapters of il.growth, not for pairs")
    found = find_pairs(model, how)
    width = str(next(iter(found.values())).slots)
    planned = wanted.given.get("growth", GrowthConfig())
    if planned.max_rank not in ("auto", width):
        raise InputError(
            f"growth: max_rank={planned.max_rank}, and the host's pairs have {width} slots. "
            "Leave max_rank out, or make the pairs as wide"
        )
    tree, axes = as_tree(found)
    growth = replace(planned, max_rank=width)
    trainer, first = wanted.prepare(tree, growth=growth, parameters=axes)
    grown = {name: found[name] for name in first.params.adapter}
    rule = PairRule(trainer, first, grown, how.scale, follows_loss(wanted.optimizer))
    return as_transformation(rule)


def _choose_score(
    given: ImportanceFunction | None, config: GrowthConfig, is_scored_by_host: bool
) -> ImportanceFunction:
    """Return the score; the default of the configuration needs a host that scores."""
    name: str = config.importance
    if name == GrowthConfig.importance and not is_scored_by_host:
        name = _DEFAULT_SCORE
    chosen = choose_importance(given, name)
    if (chosen.evidence is Evidence.DENSE) != is_scored_by_host:
        told = "given" if given else name
        raise InputError(
            f"growth: the score {told} reads a dense gradient, which an optimizer does not get. "
            f"Take {_DEFAULT_SCORE}, or give scores with is_scored_by_host=True"
            if not is_scored_by_host
            else f"growth: the score {told} reads no dense gradient, and a host that scores gives "
            "one. Take is_scored_by_host=False"
        )
    return chosen


def _leaves_of(model: nnx.Module) -> dict[Path, Place]:
    """Return the place of every array of an adapter by the path of its variable."""
    names = {id(adapter): name for name, adapter in adapters_of(model).items()}
    return {
        (*map(str, path), field): (names[id(module)], field)
        for path, module in nnx.iter_modules(model)
        if isinstance(module, LowRankAdapter)
        for field in Adapter._fields
    }


def _open(model: nnx.Module, rule: "_Rule") -> optax.GradientTransformationExtraArgs:
    """Let a model apply all slots with the λ that they have, which the rule moves."""
    for adapter in adapters_of(model).values():
        _set(adapter, "active", jnp.ones_like(adapter.slots.active))
        adapter.scaling, adapter.has_room = AS_IT_IS, False
    return optax.GradientTransformationExtraArgs(rule.init, rule.update)


def _set(adapter: LowRankAdapter, field: str, value: Array) -> None:
    getattr(adapter, field).set_value(value)


class _Rule(NamedTuple):
    """The transformation: a trainer's update, with λ seen as s · λ̂ by the host."""

    trainer: Trainer
    first: TrainState
    leaves: Mapping[Path, Place]
    score: ImportanceFunction
    needs_value: bool

    def init(self, params: PyTree) -> GrowthState:
        held = self._read(params)
        _warn_of_kernels(held)
        optimizer = self.trainer.optimizer(self.trainer.settings)
        return without_parameters(begin(self.first._replace(opt_state=optimizer.init(held))))

    def update(
        self,
        updates: PyTree,
        packed: GrowthState,
        params: PyTree = None,
        *,
        scores: Mapping[str, Array] | None = None,
        value: Array | None = None,  # of the loss, for optimizers that follow it
        **_: PyTree,
    ) -> tuple[PyTree, GrowthState]:
        check_given(params, value, needs_value=self.needs_value)
        state = unpack(packed)
        seen, found = self._read(params), self._read(updates)
        scales = self._scales(state)
        held = {n: _hide(own, state.slots[n], scales[n]) for n, own in seen.adapter.items()}
        gradients = {
            name: own._replace(lam=own.lam * scales[name][..., None])
            for name, own in found.adapter.items()
        }
        evidence = self._evidence(held, gradients, scores)
        new, _info = self.trainer.update(
            state._replace(params=Trainable(held, seen.head)),
            Gradients(as_loss(value), Trainable(gradients, found.head), evidence),
        )
        scales = self._scales(new)
        moved = {
            name: own._replace(lam=effective_lambda(own, new.slots[name]) * scales[name][..., None])
            for name, own in new.params.adapter.items()
        }
        shown = Trainable(moved, new.params.head)
        moves = jax.tree.map(jnp.subtract, shown, seen)
        return self._write(moves, params), without_parameters(pack(new))

    def _evidence(
        self, held: Adapters, gradients: Adapters, scores: Mapping[str, Array] | None
    ) -> dict[Any, Probe]:
        """Return the host's scores, or λ's gradients if the method reads them."""
        adapters: dict[Any, Adapter] = dict(held)
        probes = self.trainer.method.probes(adapters, False)
        is_dense = any(isinstance(probe, ScoreProbe) for probe in probes.values())
        if is_dense != (scores is not None):
            raise InputError(
                "growth: update(…, scores=…) is missing. Take il.scored_value_and_grad"
                if is_dense
                else "growth: update got scores. Make it with is_scored_by_host=True"
            )
        if isinstance(scores, Scores) and scores.importance is not self.score.score:
            raise InputError(
                "growth: the scores are of another importance than growth was given. Give both "
                "il.growth and il.scored_value_and_grad the same"
            )
        if scores is None:
            return {name: SlotProbe(gradients[name].lam) for name in held if probes}
        return {name: ScoreProbe.of(sensitivity, scores[name]) for name in held}

    def _scales(self, state: TrainState) -> dict[str, Array]:
        """Return s of every module at its present rank."""
        rules = self.trainer.skeleton.rules
        assert rules is not None
        scaling = rules.scaling.given(state.settings)
        return {
            name: scaling(own.rank, self.first.params.adapter[name].lam.dtype)
            for name, own in state.slots.items()
        }

    def _read(self, tree: PyTree) -> Trainable:
        """Return a host's tree of parameters as adapters by name and other arrays by path."""
        held = leaves_by_path(tree)
        if missing := sorted(".".join(path) for path in self.leaves.keys() - held.keys()):
            raise InputError(
                f"growth: the optimizer does not get {missing[0]}. Give it all of the model's "
                "nnx.LoRAParam, as nnx.Optimizer(model, …, wrt=nnx.LoRAParam) does"
            )
        adapters: dict[str, dict[str, Array]] = {}
        for path, (name, field) in self.leaves.items():
            adapters.setdefault(name, {})[field] = held[path]
        head = {".".join(path): leaf for path, leaf in held.items() if path not in self.leaves}
        return Trainable({name: Adapter(**own) for name, own in adapters.items()}, head)

    def _write(self, moves: Trainable, like: PyTree) -> PyTree:
        """Return moves in the form of a host's tree."""

        def find(keys: tuple[Any, ...], leaf: Array) -> Array:
            path = path_of(keys)
            if path not in self.leaves:
                return moves.head[".".join(path)].astype(leaf.dtype)
            name, field = self.leaves[path]
            return getattr(moves.adapter[name], field)

        return jax.tree_util.tree_map_with_path(find, like)


def _warn_of_kernels(held: Trainable) -> None:
    """Warn of an optimizer that gets the kernels of adapted modules, too."""
    kernels = [n for n in held.head if n.removesuffix(".kernel") in held.adapter]
    if kernels:
        warnings.warn(
            f"growth: the optimizer gets {kernels[0]}, which learns beside its update. Give it "
            "the adapters alone, as nnx.Optimizer(model, …, wrt=nnx.LoRAParam) does",
            stacklevel=2,
        )


def _hide(adapter: Adapter, slots: Slots, scale: Array) -> Adapter:
    """Return an adapter with its own λ in place of the λ that the host sees, s · λ̂."""
    own = jnp.where(slots.active, adapter.lam / scale[..., None], 0.0)
    return adapter._replace(lam=own.astype(adapter.lam.dtype))


def ranks_of(optimizer: nnx.Optimizer[Any] | PyTree) -> dict[str, int]:
    """Return the present rank of every module; waits for the device.

    Args:
        optimizer: a host's optimizer, or its state, with a transformation of `il.growth` inside.

    Raises:
        InputError: there is none inside.

    >>> import increlora_jax as il
    >>> model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    >>> settings = il.GrowthConfig(top_h=1, init_warmup=10, incre_interval=10)
    >>> grow = il.growth(model, steps=100, growth=settings)
    >>> il.ranks_of(grow.init(nnx.state(model, nnx.LoRAParam)))
    {'layers.0': 1}
    """
    return {
        name: int(rank)
        for path, slots in find_slots(optimizer).items()
        for name, rank in zip(
            stack_names(path, slots.is_advancing.shape),
            np.asarray(slots.rank).reshape(-1),
            strict=True,
        )
    }


def settle(model: PyTree, optimizer: nnx.Optimizer[Any] | PyTree) -> PyTree:
    """Write the masks of a transformation into its model, in place: reports and files need them.

    The model computes the same, without the slots in reserve; its λ holds the scale. Of pairs, b
    becomes 0 in slots that are not active. A settled model does not grow any more: in the middle
    of a run, settle a copy, `nnx.clone(model)`.

    Args:
        model: the model that `il.growth` was given.
        optimizer: the host's optimizer, or its state.

    Returns:
        The same module; of a tree of parameters a new one.

    Raises:
        InputError: there is no such transformation inside, or it is of another model.

    >>> import increlora_jax as il
    >>> model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    >>> grow = il.growth(model, steps=99)
    >>> settled = il.settle(model, nnx.Optimizer(model, grow, wrt=nnx.LoRAParam))
    >>> int(settled.layers[0].adapter.slots.rank)
    1
    """
    held = find_slots(optimizer)
    adapters = adapters_of(model) if isinstance(model, nnx.Module) else {}
    if not adapters:
        return settle_pairs(model, held)
    if held.keys() != adapters.keys():
        raise InputError(
            f"settle: the optimizer grows {', '.join(held)}, and the model has adapters at "
            f"{', '.join(adapters) or 'no place'}. Give the model that il.growth was given"
        )
    for name, adapter in adapters.items():
        slots = held[name]._replace(is_advancing=jnp.zeros_like(held[name].is_advancing))
        _set(adapter, "lam", jnp.where(slots.active, adapter.parameters.lam, 0.0))
        for field, value in slots._asdict().items():
            _set(adapter, field, value)
        adapter.has_room = True  # a warning, if it is trained again
    return model

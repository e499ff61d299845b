"""The paper's score in the training loops of other people."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PyTree

from increlora_jax.config import GrowthConfig
from increlora_jax.core.importance import IMPORTANCE_FUNCTIONS, ImportanceFunction
from increlora_jax.core.probe import Probe, Score, ScoreProbe, spread_probe
from increlora_jax.nn.attach import adapters_of

PAPERS = IMPORTANCE_FUNCTIONS[GrowthConfig.importance]


@jax.tree_util.register_pytree_with_keys_class
class Scores(dict[str, Array]):
    """The raw importance [*stack] of every adapter by its path, and the score that it is of."""

    def __init__(self, importance: Score, values: Mapping[str, Array]):
        super().__init__(values)
        self.importance = importance

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Return the values with their keys, and the fixed rest."""
        keyed = [(jax.tree_util.DictKey(name), value) for name, value in self.items()]
        return keyed, (self.importance, tuple(self))

    @classmethod
    def tree_unflatten(cls, fixed: Any, values: Any) -> "Scores":
        """Undo `tree_flatten_with_keys`."""
        importance, names = fixed
        return cls(importance, dict(zip(names, values, strict=True)))


def scored_value_and_grad(
    loss: Callable[..., PyTree],
    *,
    importance: ImportanceFunction = PAPERS,
    is_called_once: bool = False,
    has_aux: bool = False,
) -> Callable[..., tuple[PyTree, PyTree, dict[str, Array]]]:
    """Differentiate a host's loss with respect to its `nnx.LoRAParam`s, and score every adapter.

    Args:
        loss: (model, *args) → the loss [], or (loss, aux).
        importance: a score of the dense gradient, as given to `il.growth`; default: the paper's.
        is_called_once: whether the loss calls each adapted layer once, which saves memory.
        has_aux: whether the loss returns (loss, aux).

    Returns:
        (model, *args) → the loss or (loss, aux), the gradients, and the scores for
        `optimizer.update(model, gradients, scores=scores)`.

    >>> import increlora_jax as il
    >>> model = il.attach(nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0))))
    >>> differentiate = il.scored_value_and_grad(lambda model, x: model(x).sum())
    >>> _, _, scores = differentiate(model, jnp.ones((2, 4)))
    >>> {name: score.shape for name, score in scores.items()}
    {'layers.0': ()}
    """
    return partial(_differentiate, _Scored(loss, importance, is_called_once), has_aux)


class _Scored(NamedTuple):
    """A loss whose adapters get probes while it is computed."""

    loss: Callable[..., PyTree]
    importance: ImportanceFunction
    is_called_once: bool

    def call(
        self,
        model: nnx.Module,
        probes: dict[str, Probe],
        args: tuple[Any, ...],
        named: dict[str, Any],
    ) -> PyTree:
        """Compute the loss; Flax takes arguments by position only."""
        adapters = adapters_of(model)
        for name, adapter in adapters.items():
            is_one_use = self.is_called_once and adapter.is_called
            probe = probes[name] if is_one_use else spread_probe(probes[name], adapter.update)
            adapter.set_probe(probe)
        result = self.loss(model, *args, **named)
        for adapter in adapters.values():
            adapter.set_probe(None)
        return result


def _differentiate(
    scored: _Scored, has_aux: bool, model: nnx.Module, *args: Any, **named: Any
) -> tuple[PyTree, PyTree, dict[str, Array]]:
    score = scored.importance.score
    probes = {
        name: ScoreProbe.of(score, jnp.zeros_like(adapter.parameters.lam[..., 0]))
        for name, adapter in adapters_of(model).items()
    }
    both = nnx.value_and_grad(
        scored.call, argnums=(nnx.DiffState(0, nnx.LoRAParam), 1), has_aux=has_aux
    )
    result, (gradients, found) = both(model, probes, args, named)
    return result, gradients, Scores(score, {name: probe.value for name, probe in found.items()})

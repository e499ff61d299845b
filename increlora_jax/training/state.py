"""The state that changes from step to step, of one run."""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from increlora_jax.core.adapter import Slots
from increlora_jax.core.optimizer import Trainable

Tree = TypeVar("Tree")


@jax.tree_util.register_static
@dataclass(frozen=True)
class Placement:
    """Shardings that the arrays of a state keep from step to step.

    Where the axes of a mesh are automatic, a compiler may shard a step's results in another way
    than its arguments. The next step is then compiled again.

    Attributes:
        mesh: the axes of the mesh and their sizes; default: no mesh.
        specs: of all arrays, in the order of the leaves; default: none.
    """

    mesh: tuple[tuple[str, int], ...] = ()
    specs: tuple[PartitionSpec, ...] = ()

    def keep(self, tree: Tree) -> Tree:
        """Shard the arrays of a tree so, unless they are on another mesh by now."""
        leaves, structure = jax.tree.flatten(tree)
        meshes = [jax.typeof(leaf).sharding.mesh for leaf in leaves]
        mesh = next((mesh for mesh in meshes if not mesh.empty), None)
        if not self.specs or mesh is None or tuple(mesh.shape.items()) != self.mesh:
            return tree

        def constrain(leaf: Array, spec: PartitionSpec) -> Array:
            own = PartitionSpec(*spec[len(spec) - leaf.ndim :])  # under `vmap`, without its axis
            kept: Array = jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, own))
            return kept

        pairs = zip(leaves, self.specs, strict=True)
        return jax.tree.unflatten(structure, [constrain(*pair) for pair in pairs])


class TrainState(NamedTuple):
    """The arrays of a run that a step takes and returns; the frozen base is not part of it.

    Attributes:
        step: optimizer steps so far []; skipped steps do not count.
        skipped: steps that were not finite [].
        key: of the run []; each step folds in its number.
        params: everything trainable.
        slots: the masks and births of adapters, by module or in stacks (`core.stacking`).
        method: the state of the method.
        opt_state: the state of the optimizer.
        settings: the numbers of the run by flag, each []: learning rate, α, budget and others.
        statistics: values that the forward pass writes, such as a BatchNorm's, by path.
        placement: the shardings that `il.shard` has given; default: none.

    >>> import increlora_jax as il, jax.numpy as jnp
    >>> params = {"w": jnp.ones((4, 4))}
    >>> _, state, _ = il.prepare(params, il.lora(params), total_steps=10)
    >>> int(state.step), int(state.total_rank), float(state.settings["lora_alpha"])
    (0, 2, 16.0)
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    key: Array
    params: Trainable
    slots: dict[Any, Slots]
    method: PyTree
    opt_state: optax.OptState
    settings: dict[str, Array]
    # Nothing changes the default.
    statistics: dict[str, Array] = {}  # noqa: RUF012
    placement: Placement = Placement()

    @property
    def total_rank(self) -> Int[Array, ""]:
        """The sum of the ranks of all modules []."""
        ranks = [slots.rank.sum() for slots in self.slots.values()]
        return jnp.sum(jnp.stack(ranks)) if ranks else jnp.zeros((), jnp.int32)

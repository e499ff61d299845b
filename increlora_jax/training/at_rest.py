"""A state as it lies between the steps of a loop: the modules of one shape in one stack.

A step's program then takes and makes a few dozen arrays and not a dozen for each module, which the
host has to hand over, and the compiler to copy, one by one. `Trainer.update` stacks modules in the
same way (`core.groups`), so that between two steps nothing of it is taken apart.
"""

from typing import Any

import jax

from increlora_jax.core.groups import Groups
from increlora_jax.training.sharding import Layout
from increlora_jax.training.state import TrainState, over_members


class AtRest:
    """Stacks the modules whose arrays have one shape and lie alike; of each run by itself."""

    def __init__(self, layout: Layout, state: TrainState):
        stack = len(state.members)
        adapters = state.params.adapter
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[stack:], x.dtype), adapters)
        self.groups = Groups(one, jax.tree.map(_division, layout.shardings(one)))
        pack, unpack = (over_members(state, f) for f in (self.groups.pack, self.groups.unpack))
        packed = jax.eval_shape(pack, state)
        self._pack = jax.jit(pack, out_shardings=layout.shardings(packed, stack))
        self._unpack = jax.jit(unpack, out_shardings=layout.shardings(state, stack))

    def pack(self, state: TrainState) -> TrainState:
        """The state at rest, in buffers of its own."""
        return self._pack(state)

    def unpack(self, packed: TrainState) -> TrainState:
        """The inverse: by module, as everything but a step's program wants it."""
        return self._unpack(packed)


def _division(sharding: Any) -> Any:
    """How an array is divided; None if it is whole on every device."""
    return None if sharding.is_fully_replicated else sharding.spec

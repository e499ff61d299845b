"""The state of a run."""

import jax
from flax import nnx

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.methods.full import full
from increlora_jax.methods.increlora import increlora
from tests.tiny import MLP, MODULES, start


def test_the_total_rank_is_the_sum_over_modules():
    growth = GrowthConfig(initial_rank=2, target_rank=3, init_warmup=1, incre_interval=2)
    method = increlora(MLP(), steps=20, targets=MODULES, adapter=AdapterConfig(), growth=growth)
    state = start(method, steps=20).state
    assert int(state.total_rank) == 2 * len(MODULES)
    first = state.slots[MODULES[0]]
    fewer = state.slots | {MODULES[0]: first._replace(active=first.active.at[0].set(False))}
    assert int(state._replace(slots=fewer).total_rank) == 2 * len(MODULES) - 1


def test_without_adapters_it_is_none():
    assert int(start(full(), steps=2).state.total_rank) == 0


def test_the_frozen_base_is_no_part_of_it():
    method = increlora(
        MLP(),
        steps=20,
        targets=MODULES,
        adapter=AdapterConfig(),
        growth=GrowthConfig(target_rank=1.5, top_h=2, init_warmup=1, incre_interval=2),
    )
    begun = start(method, steps=20)
    kernels = {id(leaf) for leaf in jax.tree.leaves(begun.parts.base)}
    shapes = {leaf.shape for leaf in jax.tree.leaves(nnx.state(MLP(), nnx.Param))}
    assert kernels
    assert shapes
    assert not kernels & {id(leaf) for leaf in jax.tree.leaves(begun.state)}
    assert begun.state.params.head == {}

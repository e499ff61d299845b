"""The state of a run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.methods.full import full
from increlora_jax.methods.increlora import increlora
from increlora_jax.training.state import over_members, stack
from tests.tiny import MLP, MODULES, WIDTH, assert_same, batch_of, start


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


def test_stacked_states_are_picked_apart_again():
    begun = start(full(), steps=2)
    states = [begun.trainer.init(begun.parts, seed) for seed in (1, 2)]
    stacked = stack(states)
    assert (states[0].members, stacked.members) == ((), (2,))
    for index, state in enumerate(states):
        assert_same(stacked.pick(index), state)


def test_a_state_alone_is_stacked_picked_and_mapped_by_leaving_it_as_it_is():
    state = start(full(), steps=2).state
    assert stack([state]) is state
    assert state.pick(0) is state
    assert over_members(state, start, None) is start


def test_a_function_is_mapped_over_the_members_with_the_axes_of_its_arguments():
    begun = start(full(), steps=2)
    stacked = stack([begun.state._replace(step=jnp.int32(step)) for step in (3, 4)])
    added = over_members(stacked, lambda state, a, b: state.step + a + b, None, 0)
    np.testing.assert_array_equal(added(stacked, 10, np.array([100, 200])), [113, 214])


def test_runs_that_train_together_share_one_base():
    """Activations are made for each, kernels never where products stay apart: with few rows."""
    growth = GrowthConfig(target_rank=1.5, top_h=2, init_warmup=1, incre_interval=2, max_rank="4")
    method = increlora(MLP(), steps=20, targets=MODULES, adapter=AdapterConfig(), growth=growth)
    begun = start(method, steps=20)
    state = stack([begun.trainer.init(begun.parts, seed) for seed in range(5)])
    batch = jax.tree.map(lambda leaf: np.stack([leaf] * 5), batch_of(rows=3))
    step = jax.vmap(partial(begun.trainer.step, is_scored=False), in_axes=(0, None, 0))
    program = jax.make_jaxpr(step)(state, begun.parts.base, batch)
    made = {variable.aval.shape for variable in variables_of(program)}
    assert (5, 3, WIDTH) in made
    assert made.isdisjoint({(5, *begun.parts.base[f"{name}.kernel"].shape) for name in MODULES})


def variables_of(jaxpr):
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns"):
                yield from variables_of(inner)

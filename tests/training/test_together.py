"""The axis of the runs that train together, and the calls that reach each of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from increlora_jax.config import GrowthConfig
from increlora_jax.methods.full import full
from increlora_jax.methods.increlora import increlora
from increlora_jax.training.together import join, members, over_members, pick, rows_axis, split
from tests.tiny import MLP, MODULES, WIDTH, assert_same, batch_of, start


def test_stacked_states_are_picked_apart_again():
    begun = start(full(), steps=2)
    states = [begun.trainer.init(begun.parts, seed) for seed in (1, 2)]
    stacked = join(states)
    assert (members(states[0]), members(stacked)) == ((), (2,))
    for index, state in enumerate(states):
        assert_same(pick(stacked, index), state)


def test_a_state_alone_is_stacked_picked_and_mapped_by_leaving_it_as_it_is():
    state = start(full(), steps=2).state
    assert join([state]) is state
    assert pick(state, 0) is state
    assert over_members(state, start, None) is start


def test_a_function_is_mapped_over_the_members_with_the_axes_of_its_arguments():
    begun = start(full(), steps=2)
    stacked = join([begun.state._replace(step=jnp.int32(step)) for step in (3, 4)])
    added = over_members(stacked, lambda state, a, b: state.step + a + b, None, 0)
    np.testing.assert_array_equal(added(stacked, 10, np.array([100, 200])), [113, 214])


def test_runs_that_train_together_share_one_base():
    """Activations are made for each, kernels never where products stay apart: with few rows."""
    growth = GrowthConfig(target_rank=1.5, top_h=2, init_warmup=1, incre_interval=2, max_rank="4")
    method = increlora(MLP(), steps=20, targets=MODULES, growth=growth)
    begun = start(method, steps=20)
    state = join([begun.trainer.init(begun.parts, seed) for seed in range(5)])
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


def test_host_arrays_are_split_along_any_axis():
    state = start(full(), steps=2).state
    tree = {"a": np.arange(6).reshape(3, 2)}
    assert split(tree, state, axis=1) == [tree]
    stacked = join([state, state])
    assert [part["a"].tolist() for part in split(tree, stacked, axis=1)] == [[0, 2, 4], [1, 3, 5]]
    assert [rows_axis(one, 4) for one in (state, stacked)] == [1, 2]
    assert [rows_axis(one, 1) for one in (state, stacked)] == [0, 1]

"""A state between steps, against the state by module that everything else sees."""

import jax
import jax.numpy as jnp
import pytest

from increlora_jax.run.build import plan_run, prepare_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.tasks.classification import count_tokens
from increlora_jax.training.loop import jit_step
from increlora_jax.training.stacked_state import Stacker
from increlora_jax.training.together import members
from tests.tiny import assert_same, without


def prepare(words, *more):
    run = prepare_run(plan_run(parse_run([*words, *more])))
    return run, run.first_state()


@pytest.mark.parametrize("seeds", [(), ("--seeds", "3,4")])
def test_it_comes_back_as_it_was(short_words, seeds):
    words = without(short_words, "--seed") if seeds else short_words
    run, state = prepare(words, *seeds)
    stacker = Stacker(run.plan.layout, state)
    stacked = stacker.stack(jax.tree.map(jnp.copy, state))
    assert members(stacked) == members(state)
    assert stacked.total_rank.tolist() == state.total_rank.tolist()
    assert len(jax.tree.leaves(stacked)) < len(jax.tree.leaves(state)) / 2
    assert_same(stacker.unstack(stacked), state)


@pytest.mark.parametrize("method", ["increlora", "full"])
def test_no_array_is_held_twice(short_words, method):
    run, state = prepare(short_words, "--method", method)
    stacked = Stacker(run.plan.layout, state).stack(state)
    stay = set(map(id, jax.tree.leaves(stacked)))
    assert all(leaf.is_deleted() or id(leaf) in stay for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(stacked))
    moved = [leaf for leaf in jax.tree.leaves(state) if leaf.is_deleted()]
    assert bool(moved) == (method == "increlora")
    assert all(id(leaf) in stay for leaf in state.params.head.values())


def test_steps_of_a_stacked_state_are_those_of_one_by_module_bit_for_bit(short_words):
    run, state = prepare(short_words)
    layout, base = run.plan.layout, run.parts.base
    stacker = Stacker(layout, state)
    stacked = stacker.stack(jax.tree.map(jnp.copy, state))
    batch = layout.batch(run.batch_at(0))
    options, told = {"xla_backend_optimization_level": 0}, []
    texts = []
    for own in (state, stacked):
        jitted = jit_step(run.trainer, layout, own, count_tokens)
        program = jitted.lower(own, base, batch, is_scored=True).compile(options)
        texts.append(program.as_text())
        told.append(program(own, base, batch))
    (expected, info), (got, info_stacked) = told
    assert_same(stacker.unstack(got), expected)
    assert_same(info_stacked, info)
    # Nor is a stack taken apart between steps only to be put together again.
    by_module, by_stack = (text.split("ENTRY")[1].count(" = ") for text in texts)
    assert by_stack < 0.9 * by_module

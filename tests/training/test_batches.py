"""Training batches of runs, cut up, stacked and packed."""

import numpy as np
import pytest

from increlora_jax.tasks.batching import choose_examples
from increlora_jax.tasks.packing import pack_batch
from increlora_jax.training.batches import Batches
from tests.tasks.test_batching import encoded_of

LENGTHS = np.random.default_rng(0).integers(1, 15, 50)


@pytest.fixture
def make():
    """Make the batches of one run of 8 examples a step, but for what is given."""

    def make(**options):
        chosen = {
            "seeds": (7,),
            "batch_size": 8,
            "accumulation": 1,
            "buckets": (8, 16),
            "own_rows": np.arange(options.get("batch_size", 8)),
            "block": lambda step: range(step, step + 1),
            "steps": 14,
            "pack": pack_batch,
        }
        return Batches(encoded_of(LENGTHS), **chosen | options)

    return make


def examples_of(batch):
    return set(batch["labels"][batch["weight"] > 0].tolist())


def test_packed_batches_have_the_examples_of_their_step_in_fewer_rows(make):
    batches, padded = make(), make(pack=None)
    for step in range(7):
        batch = batches(step)
        expected = choose_examples(batches.encoded, seed=7, step=step, batch_size=8)
        assert examples_of(batch) == set(expected.tolist())
        real = batch["weight"] > 0
        np.testing.assert_array_equal(batch["labels"][real], padded(step)["labels"][real])
        np.testing.assert_array_equal(batch["weight"], padded(step)["weight"])
        assert batch["input_ids"].shape[1] == 16  # holds the longest of all examples
        assert batch["input_ids"].shape[0] < 8
        assert (batch["attention_mask"] > 0).sum() == LENGTHS[expected].sum()


def test_packed_batches_of_a_block_and_of_several_runs_are_of_one_shape(make):
    def block(step):
        return range(step - step % 4, step - step % 4 + 4)

    together = make(seeds=(7, 8), block=block)
    alone = [make(seeds=(seed,)) for seed in (7, 8)]
    (most,) = max(batches.packed.rows for batches in alone)
    assert {together(step)["input_ids"].shape for step in range(8)} == {(2, most, 16)}
    for index, batches in enumerate(alone):
        np.testing.assert_array_equal(together(5)["labels"][index], batches(5)["labels"])
        rows = batches(5)["input_ids"].shape[0]
        np.testing.assert_array_equal(
            together(5)["input_ids"][index, :rows], batches(5)["input_ids"]
        )


def test_packed_batches_of_a_short_run_have_one_shape_and_a_later_one_that_needs_more_gets_it(make):
    batches = make()
    (rows,) = batches.packed.rows
    assert {batches(step)["input_ids"].shape for step in range(14)} == {(rows, 16)}
    few = make(steps=1)
    assert few.packed.rows < batches.packed.rows
    assert {few(step)["input_ids"].shape[0] for step in range(14)} == set(
        range(few.packed.rows[-1], rows + 1)
    )


def test_packed_batches_of_a_long_run_have_several_shapes_and_little_padding():
    lengths = np.random.default_rng(1).geometric(0.08, 20_000).clip(3, 64)  # as SST-2's sentences
    batches = Batches(
        encoded_of(lengths),
        seeds=(7,),
        batch_size=32,
        accumulation=1,
        buckets=(16, 32, 64),
        own_rows=np.arange(32),
        block=lambda step: range(step, step + 1),
        steps=15_000,
        pack=pack_batch,
    )
    shapes = [batches(step)["input_ids"].shape for step in range(200)]
    assert 2 <= len(set(shapes)) <= 6
    tokens = sum(
        lengths[choose_examples(batches.encoded, seed=7, step=step, batch_size=32)].sum()
        for step in range(200)
    )
    places = sum(np.prod(shape) for shape in shapes)
    assert places == pytest.approx(200 * batches.packed.places, rel=0.02)
    assert 1 - tokens / places < 0.2


@pytest.mark.parametrize("pack", [pack_batch, None])
def test_the_steps_of_every_shape_are_known_before_training(make, pack):
    batches = make(pack=pack, batch_size=2, steps=4000, program_cost=10)
    listed = batches.steps_by_shape()
    assert len(listed) > 1
    assert sorted(step for steps in listed for step in steps) == list(range(4000))
    assert [steps[0] for steps in listed] == sorted(steps[0] for steps in listed)
    shapes = [{batches(step)["input_ids"].shape for step in steps[:40]} for steps in listed]
    assert all(len(of_one) == 1 for of_one in shapes)
    assert len(set.union(*shapes)) == len(listed)


def test_the_steps_of_a_short_run_have_one_shape(make):
    assert make().steps_by_shape() == [list(range(14))]


def test_batches_are_packed_by_default_only_if_that_is_worthwhile(make):
    assert make(is_free=True).packed == make().packed
    assert make(is_free=True, buckets=(16,), batch_size=1).packed is None
    assert make(buckets=(16,), batch_size=1).packed is not None


def test_a_short_run_pads_to_one_length_and_a_long_one_to_several(make):
    short, long = make(pack=None, batch_size=1), make(pack=None, batch_size=1, steps=40_000)
    assert {short(step)["input_ids"].shape for step in range(14)} == {(1, 16)}
    assert {long(step)["input_ids"].shape for step in range(14)} == {(1, 8), (1, 16)}


def test_micro_batches_are_packed_one_by_one(make):
    whole, cut = make()(6), make(batch_size=2, accumulation=4)(6)
    assert whole["weight"].sum() == 2  # the end of the epoch: of four micro-batches one is full
    assert cut["firsts"].shape == (4, 2)
    np.testing.assert_array_equal(cut["labels"].ravel(), whole["labels"])
    np.testing.assert_array_equal(cut["weight"].ravel(), whole["weight"])
    assert not cut["attention_mask"][1:].any()

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from increlora_jax.errors import InputError
from increlora_jax.tasks import batching
from increlora_jax.tasks.batching import (
    batch_lengths,
    evaluation_batches,
    length_buckets,
    steps_per_epoch,
)
from increlora_jax.tasks.kind import Encoded, Ragged

BUCKETS = (4, 8, 16)


def encoded_of(lengths, dtype=np.int32):
    """Make example i consist of the token i + 1 alone, and be labelled i."""
    n, offsets = len(lengths), np.concatenate([[0], np.cumsum(lengths)])
    ids = np.repeat(np.arange(1, n + 1), lengths).astype(np.int32)
    types = np.repeat(np.arange(n) % 2, lengths).astype(np.int32)
    return Encoded(
        {
            "input_ids": Ragged(ids, offsets, fill=99),
            "attention_mask": Ragged(np.ones_like(ids), offsets),
            "token_type_ids": Ragged(types, offsets),
        },
        {"labels": np.arange(n).astype(dtype)},
    )


def batch_at(encoded, *, buckets, rows=None, **choice):
    """Build a training batch that is padded to the smallest buckets."""
    lengths = batch_lengths(encoded, **choice, buckets=buckets)
    return batching.batch_at(encoded, **choice, lengths=lengths, rows=rows)


def lengths_of(n):
    return np.random.default_rng(n).integers(1, 17, n)


def examples_in(batches):
    return [int(label) for b in batches for label in b["labels"][b["weight"] == 1]]


def run_epoch(encoded, seed, epoch, batch_size):
    steps = steps_per_epoch(len(encoded), batch_size)
    return [
        batch_at(encoded, seed=seed, step=step, batch_size=batch_size, buckets=BUCKETS)
        for step in range(epoch * steps, (epoch + 1) * steps)
    ]


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [
        (8, (8,)),
        (16, (16,)),
        (17, (16, 17)),
        (48, (16, 32, 48)),
        (128, (16, 32, 48, 64, 96, 128)),
        (320, (16, 32, 48, 64, 96, 128, 192, 256, 320)),
        (512, (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)),
    ],
)
def test_buckets_double_in_two_steps_up_to_the_maximum(max_length, expected):
    assert length_buckets(max_length) == expected


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 9), epoch=st.integers(0, 3))
def test_epoch_visits_each_example_once(n, batch_size, epoch):
    encoded = encoded_of(lengths_of(n))
    batches = run_epoch(encoded, 7, epoch, batch_size)
    assert (len(batches) - 1) * batch_size < n <= len(batches) * batch_size
    assert sorted(examples_in(batches)) == list(range(n))
    assert all(batch["weight"].shape == (batch_size,) for batch in batches)
    assert all(batch["weight"].all() for batch in batches[:-1])


def test_order_differs_between_epochs_and_seeds():
    encoded = encoded_of(lengths_of(50))
    runs = [(seed, epoch) for seed in range(3) for epoch in range(3)]
    orders = {tuple(examples_in(run_epoch(encoded, *run, batch_size=8))) for run in runs}
    assert len(orders) == len(runs)


def test_batch_depends_on_seed_and_step_alone():
    encoded = encoded_of(lengths_of(50))

    def take(step):
        return batch_at(encoded, seed=3, step=step, batch_size=8, buckets=BUCKETS)

    straight = [take(step) for step in range(30)]
    for step in (29, 3, 17, 0, 8):
        for name, array in straight[step].items():
            np.testing.assert_array_equal(array, take(step)[name])


def test_order_is_the_same_on_every_machine_and_day():
    # Recorded: a run resumed under a later version must go on with the batches of the earlier one.
    epoch = run_epoch(encoded_of(lengths_of(10)), seed=41, epoch=1, batch_size=3)
    assert examples_in(epoch) == [1, 8, 9, 5, 6, 3, 2, 0, 4, 7]


def test_rows_are_padded_to_the_smallest_bucket_that_holds_the_longest():
    encoded = encoded_of([2, 5, 3])
    batch = batch_at(encoded, seed=0, step=0, batch_size=4, buckets=BUCKETS)
    assert batch["input_ids"].shape == (4, 8)
    for row in range(3):
        example, count = batch["labels"][row], encoded.lengths[batch["labels"][row]]
        np.testing.assert_array_equal(batch["input_ids"][row, :count], example + 1)
        np.testing.assert_array_equal(batch["input_ids"][row, count:], 99)
        np.testing.assert_array_equal(batch["attention_mask"][row], np.arange(8) < count)
        np.testing.assert_array_equal(
            batch["token_type_ids"][row], (example % 2) * (np.arange(8) < count)
        )
    assert batch["weight"].tolist() == [1, 1, 1, 0]


def test_filling_rows_repeat_the_first_so_that_no_softmax_is_empty():
    batch = batch_at(encoded_of([3]), seed=0, step=0, batch_size=3, buckets=BUCKETS)
    assert batch["attention_mask"].sum(axis=1).tolist() == [3, 3, 3]
    assert batch["labels"].tolist() == [0, 0, 0]
    assert batch["weight"].tolist() == [1, 0, 0]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_arrays_have_the_promised_types(dtype):
    batch = batch_at(encoded_of([3, 4], dtype), seed=0, step=0, batch_size=3, buckets=BUCKETS)
    assert {name: array.dtype for name, array in batch.items()} == {
        "input_ids": np.int32,
        "attention_mask": np.int32,
        "token_type_ids": np.int32,
        "labels": dtype,
        "weight": np.float32,
    }


@pytest.mark.parametrize("n", [1, 8, 29])
def test_evaluation_drops_nothing_and_indices_bring_it_back_in_order(n):
    encoded = encoded_of(lengths_of(n))
    scattered = np.full(n, -1)
    widths = []
    for indices, batch in evaluation_batches(encoded, batch_size=8, buckets=BUCKETS):
        assert batch["weight"].tolist() == [1] * len(indices) + [0] * (8 - len(indices))
        assert (scattered[indices] == -1).all()
        scattered[indices] = batch["input_ids"][: len(indices), 0] - 1
        widths.append(batch["input_ids"].shape[1])
    assert scattered.tolist() == list(range(n))
    assert widths == sorted(widths)
    assert set(widths) <= set(BUCKETS)


def test_examples_of_one_length_are_evaluated_in_the_order_of_the_split():
    lengths = lengths_of(500)
    (indices, _), *_ = evaluation_batches(encoded_of(lengths), batch_size=500, buckets=BUCKETS)
    assert indices.tolist() == sorted(range(500), key=lambda index: lengths[index])


def test_example_longer_than_every_bucket_is_refused():
    with pytest.raises(InputError, match="17 tokens, and the longest length bucket is 16"):
        batch_at(encoded_of([17]), seed=0, step=0, batch_size=1, buckets=BUCKETS)


@given(st.integers(0, 30), st.sampled_from([(1, 4), (2, 4), (4, 8)]))
@settings(max_examples=20)
def test_hosts_that_each_take_their_rows_make_the_whole_batch(step, sizes):
    hosts, batch_size = sizes
    encoded = encoded_of(lengths_of(21))
    shared = {"seed": 3, "step": step, "batch_size": batch_size, "buckets": BUCKETS}
    whole = batch_at(encoded, **shared)
    # Not next to each other: devices may be ordered in any way.
    parts = [np.arange(host, batch_size, hosts) for host in range(hosts)]
    for rows in parts:
        own = batch_at(encoded, **shared, rows=rows)
        for name, value in own.items():
            np.testing.assert_array_equal(value, whole[name][rows])


def test_hosts_take_their_rows_of_an_evaluation_too():
    encoded = encoded_of(lengths_of(10))
    rows = np.array([2, 3])
    for (indices, whole), (same, own) in zip(
        evaluation_batches(encoded, batch_size=4, buckets=BUCKETS),
        evaluation_batches(encoded, batch_size=4, buckets=BUCKETS, rows=rows),
        strict=True,
    ):
        np.testing.assert_array_equal(indices, same)
        for name, value in own.items():
            np.testing.assert_array_equal(value, whole[name][rows])


def test_the_length_of_a_batch_is_known_before_it_is_made_and_can_be_given():
    encoded = encoded_of(lengths_of(30))
    for step in range(12):
        choice = {"seed": 1, "step": step, "batch_size": 4}
        own = batch_at(encoded, **choice, buckets=BUCKETS)
        length = own["input_ids"].shape[1]
        names = ("input_ids", "attention_mask", "token_type_ids")
        lengths = batch_lengths(encoded, **choice, buckets=BUCKETS)
        assert lengths == dict.fromkeys(names, length)
        longer = batch_at(encoded, **choice, buckets=(16,))
        np.testing.assert_array_equal(longer["input_ids"][:, :length], own["input_ids"])
        assert not longer["attention_mask"][:, length:].any()
        np.testing.assert_array_equal(longer["labels"], own["labels"])


def test_each_ragged_field_has_a_length_of_its_own():
    offsets = {"source": np.array([0, 9, 11]), "target": np.array([0, 2, 5])}
    fields = {
        name: Ragged(np.arange(cuts[-1], dtype=np.int32), cuts, fill=-100)
        for name, cuts in offsets.items()
    }
    encoded = Encoded(fields, {})
    assert encoded.lengths.tolist() == [9, 3]
    ((_, batch),) = evaluation_batches(encoded, batch_size=3, buckets=BUCKETS)
    assert {name: array.shape for name, array in batch.items()} == {
        "source": (3, 16), "target": (3, 4), "weight": (3,)
    }  # fmt: skip
    assert batch["target"].tolist() == [[2, 3, 4, -100], [0, 1, -100, -100], [2, 3, 4, -100]]

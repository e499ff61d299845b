import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from increlora_jax.tasks.packing import Packed, pack_batch, pack_lengths, packed_evaluation
from tests.tasks.test_batching import batch_at, encoded_of

LENGTHS = st.lists(st.integers(1, 16), min_size=1, max_size=40).map(np.array)


@given(LENGTHS)
def test_every_example_lies_in_one_row_that_holds_it(lengths):
    rows = pack_lengths(lengths, 16)
    assert sorted(example for row in rows for example in row) == list(range(len(lengths)))
    assert all(lengths[row].sum() <= 16 for row in rows)
    # No two rows could be one, so all but one are more than half full.
    assert sum(lengths[row].sum() <= 8 for row in rows) <= 1


def test_nothing_takes_no_row():
    assert pack_lengths(np.array([], int), 16) == []


def test_a_packed_batch_has_the_examples_of_a_padded_one():
    encoded = encoded_of(np.array([5, 2, 7, 3, 1, 4]))
    examples = np.array([4, 0, 2, 3])
    rows = pack_lengths(encoded.lengths[examples], 8)
    batch = pack_batch(encoded, examples, rows, batch_size=5, shape=(3, 8))
    assert batch["labels"].tolist() == [4, 0, 2, 3, 0]
    assert batch["weight"].tolist() == [1, 1, 1, 1, 0]
    ids, firsts = batch["input_ids"].ravel(), batch["firsts"]
    for example, first in zip(examples, firsts, strict=False):
        length = encoded.lengths[example]
        own = slice(first, first + length)
        assert set(ids[own]) == {example + 1}
        assert len(set(batch["attention_mask"].ravel()[own])) == 1
        assert set(batch["token_type_ids"].ravel()[own]) == {example % 2}
    assert rows == [[2, 0], [1, 3]]
    assert batch["attention_mask"].tolist() == [[1] * 7 + [2], [1] * 5 + [2] * 3, [0] * 8]
    assert (ids == encoded.ragged["input_ids"].fill).sum() == 8
    padded = batch_at(encoded, seed=0, step=0, batch_size=5, buckets=(8,))
    kinds = ({name: array.dtype for name, array in b.items()} for b in (batch, padded))
    packed_kinds, padded_kinds = kinds
    assert packed_kinds == padded_kinds | {"firsts": np.dtype(np.int32)}


@given(LENGTHS, st.integers(1, 9))
def test_a_packed_evaluation_has_every_example_once_in_order(lengths, batch_size):
    encoded = encoded_of(lengths)
    packed = Packed(tuple(range(1, batch_size)), 16, 16.0)  # a batch may need one row more
    seen = list(packed_evaluation(encoded, batch_size=batch_size, packed=packed, pack=pack_batch))
    assert np.concatenate([examples for examples, _ in seen]).tolist() == list(range(len(lengths)))
    for examples, batch in seen:
        firsts = batch["firsts"][: len(examples)]
        np.testing.assert_array_equal(batch["input_ids"].ravel()[firsts], examples + 1)
        assert batch["weight"].sum() == len(examples)

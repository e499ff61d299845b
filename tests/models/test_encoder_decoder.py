"""What the encoder-decoders share, by closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.models.attention import KeyValue
from increlora_jax.models.encoder_decoder import (
    look_at,
    make_room,
    remember,
    see_earlier,
    see_so_far,
    shift_right,
    take_last_eos,
)

IDS = jnp.array([[5, 1, 6, 1, 0], [7, 8, 0, 0, 0], [0, 0, 9, 1, 4], [3, 1, 1, 1, 1]])
MASK = jnp.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0]])


@pytest.mark.parametrize(
    ("eos", "positions"),
    [
        (
            1,
            [3, 1, 3, 1],
        ),  # the last one, or else the last token; padding that looks like eos is none
        ([1, 4], [3, 1, 4, 1]),
        (None, [3, 1, 4, 1]),
    ],
)
def test_the_state_taken_is_at_the_last_eos_or_the_last_token(eos, positions):
    hidden = jnp.arange(4 * 5 * 2.0).reshape(4, 5, 2)
    taken = take_last_eos(IDS, MASK, eos)(hidden)
    np.testing.assert_array_equal(taken[:, 0], hidden[jnp.arange(4), jnp.array(positions)])


def test_a_row_of_padding_only_takes_its_first_state():
    hidden = jnp.arange(6.0).reshape(1, 3, 2)
    nothing = jnp.zeros((1, 3), jnp.int32)
    np.testing.assert_array_equal(take_last_eos(nothing, nothing, 1)(hidden), hidden[:, :1])


def test_shifting_puts_the_start_before_and_drops_the_last():
    np.testing.assert_array_equal(shift_right(IDS[:2], 9), [[9, 5, 1, 6, 1], [9, 7, 8, 0, 0]])


def test_each_token_sees_those_before_it_that_are_not_padding():
    seen = see_earlier(jnp.array([[False, True, True]]))
    np.testing.assert_array_equal(seen, [[[[0, 0, 0], [0, 1, 0], [0, 1, 1]]]])
    np.testing.assert_array_equal(see_so_far(jnp.array(1), 4), [[[[1, 1, 0, 0]]]])


def test_a_cache_is_written_slot_by_slot():
    source = KeyValue(jnp.ones((2, 5, 1, 3)), jnp.ones((2, 5, 1, 3)))
    whole = look_at([source], jnp.ones((2, 5), bool))
    assert whole.position is None
    cache = make_room(whole, 4)
    for step in range(2):
        memory = cache.layers[0]
        position, room = cache.next_slot()
        assert (int(position), room) == (step, 4)
        new = KeyValue(jnp.full((2, 1, 1, 3), step + 1.0), jnp.full((2, 1, 1, 3), -step - 1.0))
        target = remember(memory.target, new, cache.position)
        cache = cache.move_on([memory._replace(target=target)])
    np.testing.assert_array_equal(cache.layers[0].target.key[:, :, 0, 0], [[1, 2, 0, 0]] * 2)
    np.testing.assert_array_equal(cache.layers[0].target.value[:, :, 0, 0], [[-1, -2, 0, 0]] * 2)
    assert cache.layers[0].source is source
    assert remember(None, source, None) is source

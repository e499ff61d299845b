"""Float64, and updates whose slots are in every state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.core.adapter import NEVER, Adapter, Slots


@pytest.fixture
def float64():
    """Compute in double precision, so that oracles can be met to the last digits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def make_adapter():
    """Draw an adapter in double precision, large enough for every term to show."""

    def make(inputs, slots, outputs, *, stack=(), seed=0):
        draw = np.random.default_rng(seed)
        return Adapter(
            jnp.asarray(draw.normal(size=(*stack, inputs, slots))),
            jnp.asarray(draw.normal(size=(*stack, slots))),
            jnp.asarray(draw.normal(size=(*stack, slots, outputs))),
        )

    return make


@pytest.fixture
def make_slots():
    """Make slots from a word of letters: a(ctive), r(eserve), d(ormant); a list makes a stack."""

    def make(letters, *, is_advancing=True, lambda_born=0, matrix_born=0):
        rows = np.array([list(word) for word in ([letters] * isinstance(letters, str) or letters)])
        if isinstance(letters, str):
            rows = rows[0]
        present = rows != "d"
        return Slots(
            jnp.asarray(rows == "a"),
            jnp.asarray(rows == "r"),
            jnp.full(rows.shape[:-1], is_advancing),
            jnp.asarray(np.where(rows == "a", lambda_born, NEVER), jnp.int32),
            jnp.asarray(np.where(present, matrix_born, NEVER), jnp.int32),
        )

    return make

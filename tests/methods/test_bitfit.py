import jax.numpy as jnp
import pytest

from increlora_jax.errors import InputError
from increlora_jax.methods.bitfit import bitfit
from tests.tiny import LAYERS, MLP, run, start, trains_head


def test_only_the_biases_and_the_head_learn():
    begun = start(bitfit(MLP(), is_trained=trains_head), steps=4, warmup_steps=0)
    biases = [f"layers.{index}.bias" for index in range(LAYERS)]
    assert sorted(begun.parts.head) == sorted([*biases, "head.bias", "head.kernel"])
    assert len(begun.parts.base) == LAYERS
    state = run(begun, 2)[-1][0]
    for path, value in begun.parts.head.items():
        assert (value != state.params.head[path]).any(), path
    assert state.params.adapter == {}


def test_a_model_without_biases_is_refused():
    with pytest.raises(InputError, match="no parameter whose path ends in bias"):
        bitfit({"body": {"kernel": jnp.ones((4, 4))}})

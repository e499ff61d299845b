"""Activations against PyTorch's transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.errors import InputError
from increlora_jax.models.layers import ACTIVATIONS, at_least_float32, get_activation


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_pytorch(name):
    torch = pytest.importorskip("torch")
    activations = pytest.importorskip("transformers.activations")
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    expected = activations.ACT2FN[name](torch.tensor(x))
    np.testing.assert_allclose(get_activation(name)(jnp.asarray(x)), expected, atol=2e-6)


def test_unknown_activation_names_those_that_work():
    with pytest.raises(InputError, match=r"'snake'.*gelu, gelu_python"):
        get_activation("snake")


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"), ("float64",) * 2],
)
def test_at_least_float32(narrow, wide):
    assert at_least_float32(narrow) == jnp.dtype(wide)

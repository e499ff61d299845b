import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.models.layers import LayerFactory
from increlora_jax.models.products import multiply_narrow

HALF_A_DIGIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # of relative rounding


def draw(dtype, *shapes):
    keys = jax.random.split(jax.random.key(5), len(shapes))
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("dtype", list(HALF_A_DIGIT))
def test_results_of_both_passes_are_rounded_once(dtype):
    """Each is the nearest number of its dtype to the exact sum, up to float32's own rounding."""
    x, kernel, dy = draw(dtype, (2, 5, 64), (64, 48), (2, 5, 48))
    y, pull = jax.vjp(multiply_narrow, x, kernel)
    dx, dkernel = pull(dy)
    wide = [np.asarray(a, np.float64) for a in (x, kernel, dy)]
    exact = (
        wide[0] @ wide[1],
        wide[2] @ wide[1].T,
        np.einsum("abi,abo->io", wide[0], wide[2]),
    )
    for found, wanted in zip((y, dx, dkernel), exact, strict=True):
        assert found.dtype == dtype
        largest = np.abs(wanted).max()
        error = np.abs(np.asarray(found, np.float64) - wanted)
        assert np.all(error <= HALF_A_DIGIT[dtype] * np.abs(wanted) + 1e-6 * largest)


def test_rows_of_several_runs_share_a_kernel():
    x, kernel = draw("bfloat16", (3, 7, 8), (8, 4))
    together = jax.vmap(multiply_narrow, (0, None))(x, kernel)
    alone = jnp.stack([multiply_narrow(own, kernel) for own in x])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_products_of_a_narrow_layer_are_wide(dtype):
    make = LayerFactory(0.02, jnp.dtype(dtype), jnp.dtype(dtype), nnx.Rngs(0))
    graph, state = nnx.split(make.linear(8, 4))

    def total(x):
        return nnx.merge(graph, state)(x).astype(jnp.float32).sum()

    text = jax.jit(jax.grad(total)).lower(jnp.ones((3, 8), dtype)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all(line.rstrip().endswith("xf32>") for line in products)

"""Kernels in few bits: how they are rounded and stored, what a product keeps of them."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import ShapeDtypeStruct

from increlora_jax.core.adapter import Scaling
from increlora_jax.errors import InputError
from increlora_jax.models.bert import BERT
from increlora_jax.models.registry import abstract_model, load_model, read_config
from increlora_jax.nn.any_model import attach
from increlora_jax.nn.attach import detach, merge, unmerge
from increlora_jax.quantization import (
    TILE,
    QuantizedKernel,
    as_dense,
    multiply,
    quantize,
    store_quantized,
)
from increlora_jax.weights.folder import save_weights
from tests.memory import SAVING

KINDS = ("int8", "int4", "nf4")
INPUTS, OUTPUTS = 2 * TILE, 5
# Appendix E of arXiv 2305.14314, to the digits that a nearest neighbour needs.
NORMAL_QUANTILES = np.array(
    [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
     0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
)  # fmt: skip


def kernel_of(seed=0, inputs=INPUTS, outputs=OUTPUTS):
    return jax.random.normal(jax.random.key(seed), (inputs, outputs)) * jnp.arange(1, outputs + 1)


def round_by_hand(kernel, kind):
    """By a loop over tiles and outputs, in float64."""
    rounded = np.empty(kernel.shape)
    for start in range(0, len(kernel), TILE):
        for output in range(kernel.shape[1]):
            tile = np.asarray(kernel[start : start + TILE, output], np.float64)
            largest = np.abs(tile).max()
            if kind == "nf4":
                nearest = np.abs(tile[:, None] / largest - NORMAL_QUANTILES).argmin(axis=1)
                values = NORMAL_QUANTILES[nearest] * largest
            else:
                highest = {"int8": 127, "int4": 7}[kind]
                scale = largest / (highest + 0.5)
                values = np.clip(np.round(tile / scale), -highest, highest) * scale
            rounded[start : start + TILE, output] = values
    return rounded


@pytest.mark.parametrize("kind", KINDS)
def test_every_tile_is_rounded_by_a_scale_of_its_own(kind):
    kernel = kernel_of()
    # The scale is a hundred-thousandth larger, which moves a value on the edge of two steps.
    spread, expected = as_dense(quantize(kernel, kind)), round_by_hand(kernel, kind)
    is_close = np.isclose(spread, expected, rtol=2e-5)
    assert is_close.mean() > 0.99
    assert np.abs(spread - expected).max() < 0.4 * np.abs(kernel).max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_of_either_sign_stays_in_range(kind):
    kernel = jnp.stack([jnp.linspace(-1, 1, TILE), jnp.linspace(1, -1, TILE)], axis=1)
    spread = as_dense(quantize(kernel, kind))
    assert (np.sign(spread) * np.sign(kernel) >= 0).all()
    np.testing.assert_allclose(spread, kernel, atol=0.17)


@pytest.mark.parametrize(("kind", "share"), [("int8", 1.0), ("int4", 0.5), ("nf4", 0.5)])
def test_it_takes_as_many_bytes_as_it_says(kind, share):
    kernel = quantize(kernel_of().astype(jnp.bfloat16), kind)
    assert kernel.values.nbytes == share * INPUTS * OUTPUTS
    assert kernel.scale.shape == (2, OUTPUTS)
    assert kernel.shape == (INPUTS, OUTPUTS)
    assert kernel.dtype == kernel.scale.dtype == as_dense(kernel).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_and_its_gradient_are_those_of_the_kernel_spread_out(kind):
    kernel = quantize(kernel_of(), kind)
    x, dy = (jax.random.normal(jax.random.key(1), (2, 3, n)) for n in (INPUTS, OUTPUTS))
    y, pull = jax.vjp(lambda x: multiply(x, kernel), x)
    np.testing.assert_allclose(y, x @ as_dense(kernel), rtol=1e-6)
    np.testing.assert_allclose(pull(dy)[0], dy @ as_dense(kernel).T, rtol=1e-6)
    # And so it is where seeds are mapped over one base.
    np.testing.assert_allclose(
        jax.vmap(jax.grad(lambda x: multiply(x, kernel).sum()))(x),
        jnp.broadcast_to(as_dense(kernel).sum(axis=1), x.shape),
        rtol=1e-5,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_fused_with_what_follows(kind):
    """As in a layer norm of many rows, where XLA's CPU makes one kernel of it all."""
    kernel, x = quantize(kernel_of(), kind), jax.random.normal(jax.random.key(1), (4096, INPUTS))
    got = jax.jit(lambda x, kernel: multiply(x, kernel).mean(axis=-1))(x, kernel)
    expected = (x @ as_dense(kernel)).mean(axis=-1)
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_backward_pass_keeps_the_values_and_scales_and_nothing_else(kind):
    def kept(kernel, x):
        return jax.tree.leaves(jax.vjp(lambda x: multiply(x, kernel), x)[1])

    kernel = quantize(kernel_of(), kind)
    found = jax.eval_shape(kept, kernel, jnp.ones((3, INPUTS)))
    assert sorted((x.shape, x.dtype.name) for x in found) == sorted(
        (x.shape, x.dtype.name) for x in jax.tree.leaves(kernel)
    )


def test_no_kernel_lives_spread_out_from_forward_to_backward():
    """Eight products in a row need room for about two kernels, and not for eight."""
    kernels = [quantize(kernel_of(seed, 512, 512), "nf4") for seed in range(8)]

    def chain(x, kernels):
        for kernel in kernels:
            x = jnp.tanh(multiply(x, kernel))
        return x.sum()

    lowered = jax.jit(jax.grad(chain)).lower(jnp.ones((4, 512)), kernels)
    taken = lowered.compile(compiler_options=SAVING).memory_analysis().temp_size_in_bytes
    assert taken < 3 * 512 * 512 * 4


@pytest.fixture
def config(tiny_model):
    return read_config(tiny_model)


def kernels_of(model):
    """Collect the stored kernels; an adapted layer's `kernel` is read as W + ΔW."""
    return {
        ".".join(map(str, path)): vars(layer)["kernel"].get_value()
        for path, layer in nnx.iter_modules(model)
        if isinstance(layer, nnx.Linear)
    }


def test_the_layers_of_the_encoder_are_quantised_and_no_others(config):
    kernels = kernels_of(abstract_model(config, num_labels=2, quantize="nf4"))
    quantised = {path for path, k in kernels.items() if isinstance(k, QuantizedKernel)}
    assert quantised == {path for path in kernels if ".layer." in path}
    assert kernels.keys() - quantised == {"bert.pooler.dense", "classifier"}
    assert all(isinstance(k.values, ShapeDtypeStruct) for k in map(kernels.get, quantised))


@pytest.mark.parametrize("kind", KINDS)
def test_loading_rounds_what_the_file_holds(tiny_model, kind):
    plain, _ = load_model(tiny_model, num_labels=2)
    model, report = load_model(tiny_model, num_labels=2, quantize=kind)
    assert report.new_parameters == ()
    expected = kernels_of(plain)
    for path, kernel in kernels_of(model).items():
        if isinstance(kernel, QuantizedKernel):
            assert kernel.kind == kind
            np.testing.assert_array_equal(
                as_dense(kernel), as_dense(quantize(expected[path], kind))
            )
        else:
            np.testing.assert_array_equal(kernel, expected[path])


def call(model):
    ids = jnp.array([[2, 5, 6, 3], [2, 7, 3, 0]])
    model.eval()
    return model(ids, (ids > 0).astype(int), jnp.zeros_like(ids))


def test_merging_gives_plain_kernels_that_can_be_saved_and_unmerging_gives_the_bits_back(
    tiny_model, tmp_path
):
    model, _ = load_model(tiny_model, num_labels=2, quantize="int4")
    before = kernels_of(model)
    attach(model, BERT.target_modules, scaling=Scaling(4.0), rngs=nnx.Rngs(0))
    for _, module in nnx.iter_modules(model):
        if hasattr(module, "lam"):
            module.lam[...] = jnp.ones_like(module.lam[...])
    adapted = call(model)
    np.testing.assert_allclose(call(merge(model)), adapted, rtol=1e-4, atol=1e-5)
    unmerge(model)
    jax.tree.map(np.testing.assert_array_equal, kernels_of(model), before)
    plain = detach(merge(model))
    assert not any(isinstance(k, QuantizedKernel) for k in kernels_of(plain).values())
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    save_weights(plain, tmp_path, BERT.weights)
    loaded, _ = load_model(tmp_path, num_labels=2)
    np.testing.assert_allclose(call(loaded), adapted, rtol=1e-4, atol=1e-5)


def test_a_bf16_model_multiplies_in_bf16(tiny_model):
    dtypes = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    model, _ = load_model(tiny_model, num_labels=2, quantize="int8", **dtypes)
    layer = model.bert.encoder.layer[0].intermediate.dense
    assert layer.kernel.get_value().scale.dtype == jnp.bfloat16
    assert layer(jnp.ones((3, 16))).dtype == jnp.bfloat16


def test_without_the_library_the_remedy_is_named(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(InputError, match=r"pip install 'increlora_jax\[quantization\]'"):
        abstract_model(config, num_labels=2, quantize="int8")
    abstract_model(config, num_labels=2)


def test_an_odd_number_of_inputs_takes_a_byte_each():
    class Odd(nnx.Module):
        def __init__(self):
            self.mix = nnx.Linear(5, 2, rngs=nnx.Rngs(0))

    with pytest.raises(InputError, match=r"two inputs in a byte, and mix has 5. Take int8"):
        store_quantized(nnx.eval_shape(Odd), "mix", "nf4")
    model = nnx.eval_shape(Odd)
    store_quantized(model, "mix", "int8")
    assert model.mix.kernel.get_value().shape == (5, 2)

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.dropout import Dropout
from increlora_jax.errors import InputError
from increlora_jax.nn.any_model import attach
from increlora_jax.nn.initial import start_small
from increlora_jax.nn.kernels import EinsumAxes, KernelAxes
from increlora_jax.nn.layers import kernel_axes
from increlora_jax.nn.low_rank import AdapterParam, LowRankAdapter, SlotState

LAYERS = {
    "linear": (lambda **k: nnx.Linear(6, 5, **k), (3, 6), (6, 5)),
    "linear without bias": (lambda **k: nnx.Linear(6, 5, use_bias=False, **k), (6,), (6, 5)),
    "linear, many axes": (lambda **k: nnx.Linear(6, 5, **k), (2, 3, 4, 6), (6, 5)),
    "general, one to many": (lambda **k: nnx.LinearGeneral(6, (2, 4), **k), (3, 6), (6, 8)),
    "general, many to one": (
        lambda **k: nnx.LinearGeneral((2, 4), 5, axis=(-2, -1), **k), (3, 2, 4), (8, 5)),
    "general, axes amid": (
        lambda **k: nnx.LinearGeneral((2, 4), (5, 3), axis=(1, 2), **k), (3, 2, 4, 7), (8, 15)),
    "general, axes swapped": (  # Flax sorts them
        lambda **k: nnx.LinearGeneral((2, 4), 5, axis=(2, 1), **k), (3, 2, 4), (8, 5)),
    "general, axes negative and apart": (
        lambda **k: nnx.LinearGeneral((2, 4), 5, axis=(-1, -3), **k), (2, 3, 4), (8, 5)),
    "einsum, new axes": (
        lambda **k: nnx.Einsum("bsd,dnh->bsnh", (6, 2, 4), **k), (3, 5, 6), (6, 8)),
    "einsum, contracted axes": (
        lambda **k: nnx.Einsum("bsnh,nhd->bsd", (2, 4, 6), **k), (3, 5, 2, 4), (8, 6)),
    "einsum, kernel the other way": (
        lambda **k: nnx.Einsum("bsd,nhd->bsnh", (2, 4, 6), **k), (3, 5, 6), (6, 8)),
    "einsum, contracted amid new": (
        lambda **k: nnx.Einsum("bsd,ndh->bsnh", (2, 6, 4), **k), (3, 5, 6), (6, 8)),
    "einsum, axes crossed": (
        lambda **k: nnx.Einsum("bnh,hkn->kb", (4, 5, 2), **k), (3, 2, 4), (8, 5)),
    "einsum, output turned": (
        lambda **k: nnx.Einsum("bsd,dk->skb", (6, 5), **k), (3, 4, 6), (6, 5)),
    "einsum, ellipsis": (
        lambda **k: nnx.Einsum("...d,df->...f", (6, 5), (5,), **k), (3, 4, 6), (6, 5)),
    "einsum, summed input axis": (
        lambda **k: nnx.Einsum("bsd,dk->bk", (6, 5), **k), (3, 4, 6), (6, 5)),
    "einsum with spaces": (
        lambda **k: nnx.Einsum("b d, d k -> b k", (6, 5), **k), (3, 6), (6, 5)),
}  # fmt: skip


class Holder(nnx.Module):
    def __init__(self, make, **kwargs):
        self.layer = make(rngs=nnx.Rngs(0), **kwargs)

    def __call__(self, x):
        return self.layer(x)


def input_of(shape):
    return jnp.asarray(np.random.default_rng(3).normal(size=shape))


@pytest.fixture
def adapted(float64, request, scaling):
    """The plain and the adapted layer of a case, and an input."""
    make, shape, _ = LAYERS[request.param]
    plain = Holder(make, param_dtype=jnp.float64)
    model = Holder(make, param_dtype=jnp.float64)
    attach(model, "layer", max_rank=4, scaling=scaling, rngs=nnx.Rngs(1), dtype=jnp.float64)
    return plain, model, input_of(shape)


every_layer = pytest.mark.parametrize("adapted", LAYERS, indirect=True)
one_of_each_type = pytest.mark.parametrize(
    "adapted", ["linear", "general, axes amid", "einsum, axes crossed"], indirect=True
)


@pytest.mark.parametrize(("make", "shape", "expected"), LAYERS.values(), ids=LAYERS)
def test_kernel_is_seen_as_the_matrix_it_multiplies_by(make, shape, expected):
    layer = make(rngs=nnx.Rngs(0))
    assert kernel_axes(layer).matrix_shape(layer.kernel.shape) == expected


@one_of_each_type
def test_a_new_adapter_changes_nothing(adapted):
    plain, model, x = adapted
    np.testing.assert_array_equal(model(x), plain(x))


@one_of_each_type
def test_a_reserve_moves_the_output_by_no_more_than_its_lambda_allows(adapted):
    plain, model, x = adapted
    own = model.layer.adapter
    own.reserve[...] = jnp.array([False, True, False, False])
    own.is_advancing[...] = jnp.array(True)
    moved = np.linalg.norm(model(x) - plain(x))
    reserve = np.linalg.norm(own.A[:, 1]) * np.linalg.norm(own.B[1])
    # s · 1e-5 · ‖a‖ ‖b‖ is the norm of ΔW: a product of norms bounds the move.
    bound = 16 / 1.00001 * 1e-5 * reserve * np.linalg.norm(x)
    assert 0 < moved <= bound


@every_layer
def test_output_is_that_of_the_plain_layer_with_the_update_in_its_kernel(adapted, stir):
    plain, model, x = adapted
    stir(model)
    got = model(x)
    model.layer.merge()
    plain.layer.kernel[...] = model.layer.kernel[...]
    np.testing.assert_allclose(got, plain(x), rtol=1e-11, atol=1e-11)
    assert not np.allclose(got, 0)


@one_of_each_type
def test_merge_puts_all_of_the_update_into_the_kernel(adapted, stir):
    plain, model, _ = adapted
    stir(model)
    delta = model.layer.adapter.update.delta
    model.layer.merge()
    difference = np.asarray(model.layer.kernel[...] - plain.layer.kernel[...])
    # The same numbers in another arrangement.
    np.testing.assert_allclose(np.sort(difference, None), np.sort(delta, None), atol=1e-12)


@one_of_each_type
def test_a_merged_layer_computes_with_its_kernel_alone(adapted, stir):
    plain, model, x = adapted
    stir(model)
    model.layer.merge()
    plain.layer.kernel[...] = model.layer.kernel[...]
    np.testing.assert_array_equal(model(x), plain(x))


def adapter_of(scaling, inputs=400, outputs=300):
    started = start_small(nnx.Rngs(0), (inputs, outputs), 5, 2, jnp.float32)
    return LowRankAdapter(*started, scaling, Dropout(0.0))


def test_every_slot_starts_from_the_normal_distribution_and_lambda_from_zero(scaling):
    own = adapter_of(scaling)
    for matrix, by_slot in ((own.A[...], own.A[...].T), (own.B[...], own.B[...])):
        assert matrix.dtype == jnp.float32
        # Five standard errors of the spread of 300 or 400 draws a slot: dormant slots as well.
        spread = 5 * 0.02 / np.sqrt(2 * 300)
        np.testing.assert_allclose(jnp.std(by_slot, axis=1), 0.02, atol=spread)
        np.testing.assert_allclose(jnp.mean(by_slot, axis=1), 0, atol=5 * 0.02 / np.sqrt(300))
    assert own.lam[...].tolist() == [0.0] * 5
    assert own.slots.active.tolist() == [True, True, False, False, False]


def test_a_and_b_are_drawn_apart(scaling):
    own = adapter_of(scaling, 5, 5)
    assert not np.allclose(own.A[...], own.B[...])


def test_other_trainers_know_the_parameters_and_leave_the_masks_alone(scaling):
    own = adapter_of(scaling)
    assert {type(getattr(own, name)) for name in ("A", "lam", "B")} == {AdapterParam}
    assert issubclass(AdapterParam, nnx.LoRAParam)
    assert not issubclass(SlotState, nnx.Param)
    trained = nnx.state(own, nnx.LoRAParam)
    assert sorted(path[0] for path, _ in nnx.to_flat_state(trained)) == ["A", "B", "lam"]


def test_dropout_falls_on_the_adapters_input_alone(float64, stir, scaling):
    model, plain = (Holder(LAYERS["linear"][0], param_dtype=jnp.float64) for _ in range(2))
    attach(
        model, "layer", max_rank=4, scaling=scaling, dropout=0.5, rngs=nnx.Rngs(1),
        dtype=jnp.float64,
    )  # fmt: skip
    delta = np.asarray(stir(model).layer.adapter.update.delta)
    x = input_of((7, 6))
    model.train()
    part = np.asarray(model(x) - plain(x))
    # Each of the six inputs is dropped or doubled: every row is one of the 64 outcomes.
    choices = 2.0 * (np.arange(64)[:, None] >> np.arange(6) & 1)
    outcomes = (np.asarray(x)[:, None] * choices) @ delta
    distance = np.abs(part[:, None] - outcomes).max(axis=-1)
    assert distance.min(axis=1).max() < 1e-12
    assert len(set(distance.argmin(axis=1))) > 1
    model.eval()
    np.testing.assert_allclose(model(x), plain(x) + x @ delta, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "general, many to one", "einsum, kernel the other way"])
def test_bfloat16_base_with_a_float32_adapter(name, stir, scaling):
    make, shape, _ = LAYERS[name]
    model = Holder(make, param_dtype=jnp.bfloat16)
    stir(attach(model, "layer", max_rank=4, scaling=scaling, rngs=nnx.Rngs(1)))
    x = input_of(shape).astype(jnp.bfloat16)
    y, own = model(x), model.layer.adapter
    assert y.dtype == jnp.bfloat16
    assert own.A[...].dtype == own.lam[...].dtype == own.B[...].dtype == jnp.float32
    wide = Holder(make)
    model.layer.merge()
    wide.layer.kernel[...] = model.layer.original[...] + model.layer.kernel_axes().as_kernel(
        own.update.delta, model.layer.original.shape
    )
    expected = np.asarray(wide(x.astype(jnp.float32)))
    # A few roundings to bfloat16's 2⁻⁸, relative to the largest output.
    np.testing.assert_allclose(
        y.astype(jnp.float32), expected, atol=0.03 * float(np.abs(expected).max())
    )


def test_merge_rounds_a_bfloat16_kernel_once(stir, scaling):
    model = Holder(LAYERS["linear"][0], param_dtype=jnp.bfloat16)
    before = model.layer.kernel[...].astype(jnp.float32)
    stir(attach(model, "layer", max_rank=4, scaling=scaling, rngs=nnx.Rngs(1)))
    exact = before + model.layer.adapter.update.delta
    model.layer.merge()
    assert model.layer.kernel[...].dtype == jnp.bfloat16
    np.testing.assert_array_equal(model.layer.kernel[...], exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_unmerge_restores_the_kernel_bit_for_bit(dtype, stir, scaling):
    model = Holder(LAYERS["linear"][0], param_dtype=dtype)
    before = np.asarray(model.layer.kernel[...])
    stir(attach(model, "layer", max_rank=4, scaling=scaling, rngs=nnx.Rngs(1)))
    output = model(input_of((3, 6)))
    model.layer.merge()
    model.layer.unmerge()
    np.testing.assert_array_equal(nnx.state(model)["layer"]["kernel"][...], before)
    np.testing.assert_array_equal(model(input_of((3, 6))), output)


def test_merging_twice_or_unmerging_nothing_is_an_error(scaling):
    model = Holder(LAYERS["linear"][0])
    attach(model, "layer", scaling=scaling, rngs=nnx.Rngs(1), max_rank=4)
    with pytest.raises(ValueError, match="not merged"):
        model.layer.unmerge()
    model.layer.merge()
    with pytest.raises(ValueError, match="merged already"):
        model.layer.merge()


def test_the_layers_own_dtype_reaches_the_adapter(scaling):
    model = Holder(lambda **k: nnx.Linear(6, 5, dtype=jnp.bfloat16, **k))
    attach(model, "layer", scaling=scaling, rngs=nnx.Rngs(1), max_rank=4)
    assert model(jnp.ones((2, 6), jnp.float32)).dtype == jnp.bfloat16


def test_einsum_axes_by_what_becomes_of_them():
    axes = EinsumAxes.parse("...snh, nhd -> ...sd")
    assert (axes.contracted, axes.new, axes.kept) == ("nh", "d", "...s")
    assert axes.kernel_axes() == KernelAxes(inputs=(-3, -2), outputs=(-1,))


@pytest.mark.parametrize("equation", ["bnd,ndh->bnh", "bd,dkz->bk"])
def test_einsum_whose_kernel_is_no_matrix_is_refused(equation):
    with pytest.raises(InputError, match="cannot be adapted, exclude it"):
        EinsumAxes.parse(equation)


def test_einsum_without_its_own_equation_is_refused():
    with pytest.raises(InputError, match=r"without einsum_str.*Exclude it"):
        EinsumAxes.parse(None)


def test_adapted_einsum_keeps_its_equation(scaling):
    model = Holder(LAYERS["einsum, ellipsis"][0])
    attach(model, "layer", scaling=scaling, rngs=nnx.Rngs(1), max_rank=4)
    model.layer(jnp.ones((3, 4, 6)), "...d,df->...f")
    with pytest.raises(InputError, match="keeps its equation"):
        model.layer(jnp.ones((3, 4, 6)), "bsd,df->bsf")


def test_general_layer_with_batch_axes_is_refused():
    layer = nnx.LinearGeneral(6, 5, batch_axis={0: 3}, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="batch_axis"):
        kernel_axes(layer)


def test_a_deleted_attribute_leaves_no_trace_in_flax():
    plain, marked = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    marked.mark = nnx.Param(jnp.ones(1))
    assert nnx.graphdef(marked) != nnx.graphdef(plain)
    del marked.mark
    assert not hasattr(marked, "mark")
    assert nnx.graphdef(marked) == nnx.graphdef(plain)


def is_summed(model, x):
    """Whether a dense ΔW [6, 5] is made on the way."""
    graphdef, state = nnx.split(model)
    jaxpr = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x))(state, x)
    return ":f32[6,5] = dot_general" in str(jaxpr)


@pytest.mark.parametrize(
    ("rows", "layer", "more", "expected"),
    [
        (9, {}, {}, True),
        (2, {}, {}, False),  # two products multiply less
        (9, {}, {"dropout": 0.5}, False),  # x is not the same in both
        (9, {"dtype": jnp.bfloat16}, {}, False),
        (9, {"param_dtype": jnp.bfloat16}, {}, False),
        (9, {"precision": "highest"}, {}, False),
        (9, {"dot_general": partial(jax.lax.dot_general)}, {}, False),
    ],
)
def test_update_joins_the_kernel_where_that_is_cheaper_and_exact(
    rows, layer, more, expected, scaling
):
    model = Holder(lambda **k: nnx.Linear(6, 5, **k), **layer)
    attach(model, "layer", max_rank=4, scaling=scaling, rngs=nnx.Rngs(1), **more)
    x = jnp.ones((rows, 6))
    assert is_summed(model, x) is expected
    model.eval()
    assert is_summed(model, x) is (expected or "dropout" in more)

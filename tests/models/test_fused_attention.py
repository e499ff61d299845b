"""DeBERTa's attention in kernels: by Pallas's interpreter, and lowered for CUDA without a GPU."""

from functools import partial
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from transformers import AutoConfig

from increlora_jax.errors import InputError
from increlora_jax.models.deberta_encoder import DebertaEncoder
from increlora_jax.models.fused_attention import (
    Attended,
    AttentionImplementation,
    FusableAttention,
    Settings,
    attend_fused,
    check_fused,
    set_attention,
)
from increlora_jax.models.layers import LayerFactory
from tests.models.test_deberta import V3
from tests.models.test_repeated_layer import QUICK, differentiate, make_model, rows_of

SCALE, KEPT_SCALE = 0.3, 1.25


def draw(length, dtype, *, kinds=("c2p", "p2c"), is_dropped=True, sequences=1):
    """Random arrays of two rows of three heads of five, padded at the end, one of them packed."""
    random = np.random.default_rng(length)
    tokens, rows = (2, length, 3, 5), (2 * length, 3, 5)
    normal = lambda shape: jnp.asarray(random.normal(size=shape), dtype)  # noqa: E731
    numbers = np.ones((2, length), int)
    numbers[0, -2:] = 0
    numbers[1] = np.sort(random.integers(1, sequences + 1, length))
    is_seen = (numbers[:, :, None] == numbers[:, None]) & (numbers[:, None] > 0)
    return Attended(
        query=normal(tokens),
        key=normal(tokens),
        key_rows=normal(rows) if "c2p" in kinds else None,
        query_rows=normal(rows) if "p2c" in kinds else None,
        value=normal(tokens),
        is_seen=jnp.asarray(is_seen[:, None]),
        is_kept=jnp.asarray(random.random((2, 3, length, length)) < 0.8) if is_dropped else None,
    )


def attend_by_definition(attended):
    """Every pair by itself: the row of its distance is looked up."""
    query, key, key_rows, query_rows, value, is_seen, is_kept = attended
    length = query.shape[1]
    distance = np.arange(length)[:, None] - np.arange(length)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    if key_rows is not None:
        scores += jnp.einsum("bqhd,qkhd->bhqk", query, key_rows[distance + length])
    if query_rows is not None:
        scores += jnp.einsum("bkhd,qkhd->bhqk", key, query_rows[distance + length])
    scores = jnp.where(is_seen, SCALE * scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if is_kept is not None:
        weights = jnp.where(is_kept, KEPT_SCALE * weights, 0)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


interpreted = partial(attend_fused, Settings(SCALE, KEPT_SCALE, is_interpreted=True))


def with_gradients(attend, attended, d_mixed):
    """The output, and the gradients by everything that is not a mask."""

    def of_arrays(arrays):
        return attend(Attended(*arrays, *attended[5:]))

    mixed, differentiate = jax.vjp(of_arrays, attended[:5])
    return mixed, differentiate(d_mixed)[0]


def run(function, *arguments):
    """Compiled, but not for long."""
    return jax.jit(function).lower(*arguments).compile(compiler_options=QUICK)(*arguments)


def assert_equal(actual, expected, tolerance):
    """Up to a share of each array's largest entry."""
    actual, expected = map(jax.tree.leaves, (actual, expected))
    for one, other in zip(actual, expected, strict=True):
        assert jnp.isfinite(one).all()
        largest = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize(
    ("length", "options"),
    [
        (5, {"sequences": 2}),
        (70, {"sequences": 3}),  # more than a block, and not two
        (20, {"kinds": ("c2p",), "is_dropped": False}),
        (20, {"kinds": ("p2c",)}),
        (20, {"kinds": ()}),
    ],
)
def test_output_and_gradients_are_those_of_the_definition(length, options):
    with jax.enable_x64(True):
        attended = draw(length, jnp.float64, **options)
        d_mixed = draw(length + 1, jnp.float64).query[:, :length]
        actual, expected = (
            run(partial(with_gradients, attend), attended, d_mixed)
            for attend in (interpreted, attend_by_definition)
        )
        assert_equal(actual, expected, 1e-13)


def test_rounding_is_that_of_bfloat16():
    """Its digits are 2⁻⁸ apart, and products with rows, scores of up to 5, are rounded to them."""
    attended = draw(40, jnp.bfloat16)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype != bool else x, attended)
    actual = run(partial(with_gradients, interpreted), attended, attended.value)
    expected = run(partial(with_gradients, attend_by_definition), exact, exact.value)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(actual))
    assert_equal(jax.tree.map(lambda x: x.astype(jnp.float32), actual), expected, 0.03)


def test_runs_of_several_seeds_attend_as_each_alone():
    """Masks and rows are shared, as over a frozen base; queries, keys and values are not."""
    shared, more = draw(20, jnp.float32), draw(21, jnp.float32)
    stacked = [jnp.stack([shared[at], more[at][:, :20]]) for at in (0, 1, 4)]

    def differentiate(attend, query, key, value):
        one = shared._replace(query=query, key=key, value=value)
        return with_gradients(attend, one, shared.value)

    actual, expected = (
        run(jax.vmap(partial(differentiate, attend)), *stacked)
        for attend in (interpreted, attend_by_definition)
    )
    assert_equal(actual, expected, 1e-5)


@pytest.fixture
def fuse(monkeypatch):
    """Have the interpreter run the kernels in every attention from here on."""

    def fuse():
        monkeypatch.setattr(FusableAttention, "attn_implementation", "pallas")
        monkeypatch.setattr(FusableAttention, "is_interpreted", True)

    return fuse


def test_an_encoder_of_packed_rows_has_the_same_dropout_and_gradients(fuse):
    ids = rows_of(0, length=9)["input_ids"]
    numbers = np.array([[1, 1, 1, 2, 2, 3, 3, 0, 0], [1] * 9])

    def differentiate(state):
        def loss(state):
            encoder = nnx.merge(graph, state, others, copy=True)
            hidden = encoder(ids, numbers, np.zeros_like(ids), is_packed=True)
            return jnp.square(hidden - 1).sum()

        return jax.value_and_grad(loss)(state)

    with jax.enable_x64(True):
        graph, state, others = nnx.split(make_model("deberta-v2")[0].deberta, nnx.Param, ...)
        expected = run(differentiate, state)
        fuse()
        actual = run(differentiate, state)
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1]))
        close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12 * largest)
        jax.tree.map(close, actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_increlora_has_the_same_loss_gradients_and_scores(remat, fuse):
    with jax.enable_x64(True):
        expected = differentiate("deberta-v2", remat)
        fuse()
        actual = differentiate("deberta-v2", remat)
        close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-14)
        jax.tree.map(close, actual, expected)


def lower_for_cuda(function, *arguments):
    """The program for an NVIDIA GPU as text; from jax 0.11 on it wants to know which."""
    named = {"device_kind": "NVIDIA H100 80GB HBM3", "num_cores": None, "platform": "gpu"}
    fields = AbstractDevice.__dataclass_fields__
    device = AbstractDevice(**{name: value for name, value in named.items() if name in fields})
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        traced = jax.jit(function).trace(*arguments)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


KERNEL = "__gpu$xla.gpu.triton"


V3_BASE = V3 | {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


def program_for_cuda(implementation, dtype, batch, length):
    """That of the gradients through a layer of DeBERTa-v3-base."""
    settings = V3_BASE | {"num_hidden_layers": 1, "hidden_dropout_prob": 0}
    config = AutoConfig.for_model(**settings)

    def build():
        encoder = DebertaEncoder(config, LayerFactory(0.02, dtype, dtype, nnx.Rngs(0)))
        set_attention(encoder, implementation)
        return encoder

    graph, state = nnx.split(nnx.eval_shape(build))

    def differentiate(state, hidden, mask):
        loss = lambda hidden: nnx.merge(graph, state, copy=True)(hidden, mask).sum()  # noqa: E731
        return jax.grad(loss)(hidden)

    hidden = jax.ShapeDtypeStruct((batch, length, 768), dtype)
    mask = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    return lower_for_cuda(differentiate, state, hidden, mask)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(("batch", "length"), [(32, 128), (3, 200)])
def test_it_lowers_for_cuda_and_leaves_no_scores(batch, length, dtype):
    scores = f"{batch}x12x{length}x{length}xf32"
    by_xla, fused = (
        program_for_cuda(name, dtype, batch, length) for name in get_args(AttentionImplementation)
    )
    assert (by_xla.count(KERNEL), fused.count(KERNEL)) == (0, 3)
    assert scores in by_xla
    assert scores not in fused


def test_runs_of_several_seeds_lower_for_cuda():
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    tokens, rows = shape((5, 2, 128, 12, 64)), shape((5, 256, 12, 64))
    masks = (jax.ShapeDtypeStruct((5, 2, heads, 128, 128), bool) for heads in (1, 12))
    attended = Attended(tokens, tokens, rows, rows, tokens, *masks)
    attend = partial(attend_fused, Settings(SCALE, KEPT_SCALE, is_interpreted=False))
    program = lower_for_cuda(jax.vmap(partial(with_gradients, attend)), attended, tokens)
    assert program.count(KERNEL) == 3


def abstract(family):
    return nnx.eval_shape(lambda: make_model(family, jnp.float32)[0])


class Device(NamedTuple):
    device_kind: str
    compute_capability: str


@pytest.mark.parametrize("capability", ["8.0", "9.0", "12.1"])
def test_deberta_on_one_such_gpu_is_fused(capability):
    check_fused(abstract("deberta-v2"), [Device("NVIDIA something", capability)])


H100 = Device("NVIDIA H100", "9.0")


@pytest.mark.parametrize(
    ("family", "devices", "message"),
    [
        ("bert", [H100], "BertForSequenceClassification has no attention that .* only DeBERTa has"),
        ("deberta-v2", [H100, H100], "needs a single device.*this run has 2"),
        ("deberta-v2", [Device("Tesla T4", "7.5")], "8.0 or later, and JAX found Tesla T4"),
        ("deberta-v2", [Device("AMD Instinct", "gfx942")], "NVIDIA GPU .* found AMD Instinct"),
        ("deberta-v2", jax.devices("cpu")[:1], "NVIDIA GPU .* found cpu. Leave it out"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused(family, devices, message):
    model = abstract(family)
    with pytest.raises(InputError, match=f"--attn-implementation pallas.*{message}"):
        check_fused(model, devices)

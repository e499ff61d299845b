"""Modules of others that multiply by a declared parameter take its update as two products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import increlora_jax as il
from increlora_jax.core.adapter import Scaling
from increlora_jax.errors import InputError
from increlora_jax.nn.any_model import attach
from increlora_jax.nn.attach import adapters_of, detach, merge, unmerge
from increlora_jax.nn.equations import find_equation
from increlora_jax.nn.kernels import KernelAxes
from increlora_jax.nn.skeleton import split

WIDTH, HEADS, SIZE = 8, 2, 3


class Equation(nnx.Module):
    """A layer as tunix and gemma have it: an array `w` and an equation."""

    def __init__(self, einsum_str, shape, *, dtype=None, rngs):
        self.einsum_str, self.dtype = einsum_str, dtype
        self.w = nnx.Param(jax.random.normal(rngs.params(), shape) / shape[0] ** 0.5)

    @jax.named_scope("einsum")
    def __call__(self, x):
        x, w = (jnp.astype(a, self.dtype or a.dtype) for a in (x, self.w[...]))
        return jnp.einsum(self.einsum_str, x, w)


class General(nnx.Module):
    """A layer as maxtext has it: a kernel of several axes, a dot_general and a bias."""

    def __init__(self, inputs, outputs, *, rngs):
        self.inputs = inputs
        draw = nnx.initializers.normal(0.3)
        self.kernel = nnx.Param(draw(rngs.params(), (*inputs, *outputs), float))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x, _unused=None):
        count = len(self.inputs)
        last = tuple(range(x.ndim - count, x.ndim))
        over = ((last, tuple(range(count))), ((), ()))
        return jax.lax.dot_general(x, self.kernel[...], over) + self.bias[...]


class Turned(nnx.Module):
    """A kernel of [outputs, inputs], as PyTorch stores it."""

    def __init__(self, *, rngs):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (5, WIDTH)))

    def __call__(self, x):
        return x @ self.weight.T


class Attention(nnx.Module):
    """Heads by equations, a dense output of several axes, and a turned kernel."""

    def __init__(self, rngs):
        self.q = Equation("BTD,DNH->BTNH", (WIDTH, HEADS, SIZE), rngs=rngs)
        self.kv = Equation("BSD,CKDH->CBSKH", (2, HEADS, WIDTH, SIZE), rngs=rngs)
        self.out = General((HEADS, SIZE), (WIDTH,), rngs=rngs)
        self.last = Turned(rngs=rngs)

    def __call__(self, x):
        key, value = self.kv(x)
        scores = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", self.q(x), key))
        return self.last(self.out(jnp.einsum("bnts,bsnh->btnh", scores, value)))


DECLARED = {
    r"out\.kernel": KernelAxes((0, 1), (2,)),
    r"last\.weight": KernelAxes((1,), (0,)),
}
PATHS = ["kv.w", "last.weight", "out.kernel", "q.w"]


def adapted(**settings):
    model = attach(
        Attention(nnx.Rngs(0)),
        ["q", "kv", "out", "last"],
        parameters=DECLARED,
        rngs=nnx.Rngs(1),
        **({"max_rank": 3, "dtype": float, "scaling": Scaling(4.0)} | settings),
    )
    draw = np.random.default_rng(2)
    for own in adapters_of(model).values():
        for value in (own.A, own.lam, own.B):
            value[...] = jnp.asarray(draw.normal(size=value.shape)) / 2
    return model


def with_deltas(model):
    """A plain model whose parameters hold the updates, arranged by hand."""
    plain, delta = (
        Attention(nnx.Rngs(0)),
        {p: a.update.delta for p, a in adapters_of(model).items()},
    )
    plain.q.w[...] += delta["q.w"].reshape(WIDTH, HEADS, SIZE)
    plain.kv.w[...] += delta["kv.w"].reshape(WIDTH, 2, HEADS, SIZE).transpose(1, 2, 0, 3)
    plain.out.kernel[...] += delta["out.kernel"].reshape(HEADS, SIZE, WIDTH)
    plain.last.weight[...] += delta["last.weight"].T
    return plain


@pytest.fixture
def x(float64):
    return jnp.asarray(np.random.default_rng(3).normal(size=(2, 5, WIDTH)))


def test_outputs_are_those_of_effective_parameters(x):
    model = adapted()
    assert list(adapters_of(model)) == PATHS
    assert all(adapter.is_called for adapter in adapters_of(model).values())
    np.testing.assert_allclose(model(x), with_deltas(model)(x), rtol=1e-11)
    np.testing.assert_allclose(merge(model)(x), unmerge(model)(x), rtol=1e-11)
    detach(merge(model))
    assert nnx.graphdef(model) == nnx.graphdef(Attention(nnx.Rngs(0)))


@pytest.mark.parametrize("is_called_once", [True, False])
def test_scores_are_those_of_the_dense_gradient(x, is_called_once):
    model = adapted()
    skeleton, parts = split(model, lambda path: False, is_called_once=is_called_once)

    def loss(probes):
        return jnp.sum(jnp.sin(skeleton.assemble(parts, None, probes)(x)))

    probe = il.core.probe.ScoreProbe.of(il.core.importance.sensitivity, jnp.zeros(()))
    scores = jax.grad(loss)(dict.fromkeys(skeleton.modules, probe))
    of_plain = nnx.grad(lambda m: jnp.sum(jnp.sin(m(x))))(with_deltas(model))
    arranged = {
        "q.w": of_plain["q"]["w"][...].reshape(WIDTH, -1),
        "kv.w": of_plain["kv"]["w"][...].transpose(2, 0, 1, 3).reshape(WIDTH, -1),
        "out.kernel": of_plain["out"]["kernel"][...].reshape(-1, WIDTH),
        "last.weight": of_plain["last"]["weight"][...].T,
    }
    for path, G in arranged.items():
        expected = jnp.abs(adapters_of(model)[path].update.delta * G).sum() / np.sqrt(G.size)
        np.testing.assert_allclose(scores[path].value, expected, rtol=1e-10, err_msg=path)


def test_dropout_falls_on_the_input_of_the_update(x):
    model = adapted(dropout=0.5)
    first, second = model(x), model(x)
    assert not np.allclose(first, second)
    model.eval()
    np.testing.assert_allclose(model(x), with_deltas(model)(x), rtol=1e-11)


def test_a_bfloat16_layer_keeps_its_dtype():
    layer = Equation("BTD,DNH->BTNH", (WIDTH, HEADS, SIZE), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    model = attach(nnx.Dict(q=layer), ["q"], rngs=nnx.Rngs(1))
    assert model.q(jnp.ones((1, 2, WIDTH))).dtype == jnp.bfloat16
    assert adapters_of(model)["q.w"].is_called


def test_a_stack_of_such_layers_takes_one_update_each(x):
    @nnx.vmap(in_axes=0)
    def make(key):
        return Equation("BTD,DE->BTE", (WIDTH, WIDTH), rngs=nnx.Rngs(key))

    stack = nnx.Dict(layers=make(jax.random.split(jax.random.key(0), 3)))
    declared = {r"layers\.w": KernelAxes((1,), (2,))}
    model = attach(stack, ["layers"], parameters=declared, rngs=nnx.Rngs(1), dtype=float)
    adapter = adapters_of(model)["layers.w"]
    assert adapter.is_called
    adapter.lam[...] = jnp.ones_like(adapter.lam[...])

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def run(layer, hidden):
        return layer(hidden)

    found, kernels = run(model.layers, x), vars(model.layers)["w"][...] + adapter.update.delta
    for kernel in kernels:
        x = x @ kernel
    np.testing.assert_allclose(found, x, rtol=1e-10)


def test_a_call_with_more_than_the_input_reads_effective_parameters(x):
    model, dropping = adapted(), adapted(dropout=0.5)
    inputs = jnp.ones((2, HEADS, SIZE))
    np.testing.assert_allclose(model.out(inputs, None), model.out(inputs), rtol=1e-11)
    with pytest.raises(InputError, match=r"General is called with more than its input.*lora_drop"):
        dropping.out(inputs, None)


def test_a_kernel_read_beside_the_call_is_refused_where_calls_count_once(x):
    skeleton, parts = split(adapted(), lambda path: False, is_called_once=True)

    def loss(probes):
        model = skeleton.assemble(parts, None, probes)
        return model(x).sum() + model.q.w[...].sum()

    probe = il.core.probe.ScoreProbe.of(il.core.importance.sensitivity, jnp.zeros(()))
    with pytest.raises(InputError, match="beside the layer's call"):
        jax.grad(loss)(dict.fromkeys(skeleton.modules, probe))


class Odd(nnx.Module):
    """A module with one matrix and another use of it."""

    def __init__(self, use, **more):
        self.w, self.use = nnx.Param(jnp.ones((4, 4))), nnx.static(use)
        self.gain = nnx.Param(jnp.ones(()))
        for name, value in more.items():
            setattr(self, name, value)

    def __call__(self, x):
        return self.use(self, x)


@pytest.mark.parametrize(
    "use",
    [
        lambda own, x: jax.nn.relu(x @ own.w),
        lambda own, x: jax.nn.relu(x) @ own.w,
        lambda own, x: x @ own.w * own.gain,
        lambda own, x: x @ own.w @ own.w,
        lambda own, x: x @ own.w.T,
        lambda own, x: own.w[x.astype(int)],
        lambda own, x: (x @ own.w).sum(-1),
        lambda own, x: own.missing(x),
        lambda own, x: jnp.clip(x, -10, 10) @ own.w,
        lambda own, x: jnp.round(x) @ own.w,
        lambda own, x: jax.lax.stop_gradient(x) @ own.w,
        lambda own, x: x[:, :100] @ own.w,
        lambda own, x: jnp.where(jnp.abs(x) >= 2, x, 0) @ own.w,
        lambda own, x: (x @ own.w)[::-1][::-1],
        lambda own, x: x @ own.w + x,
        lambda own, x: x @ own.w + own.w.sum(),
    ],
)
def test_another_use_of_a_parameter_has_no_equation(use):
    axes = KernelAxes((-2,), (-1,))
    assert find_equation(Odd(use), "w", (4, 4), axes, {}) is None
    assert find_equation(Odd(lambda own, x: x @ own.w), "w", (4, 4), axes, {}) is not None


def test_a_module_with_a_state_is_not_tried():
    module = Odd(lambda own, x: own.drop(x @ own.w), drop=nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    before = nnx.state(module, nnx.RngCount)
    assert find_equation(module, "w", (4, 4), KernelAxes((-2,), (-1,)), {}) is None
    assert jax.tree.all(jax.tree.map(jnp.array_equal, before, nnx.state(module, nnx.RngCount)))


def test_layers_of_other_constants_are_tried_by_themselves():
    class Masked(Odd):
        def __init__(self, mask):
            super().__init__(lambda own, x: x @ own.w if own.mask.all() else 2 * x @ own.w)
            self.mask = mask

    trials, axes, mask = {}, KernelAxes((-2,), (-1,)), np.ones(3000)
    assert find_equation(Masked(mask), "w", (4, 4), axes, trials) is not None
    mask[7] = 0  # not in the shortened text of an array
    assert find_equation(Masked(mask), "w", (4, 4), axes, trials) is None


def test_a_call_leaves_what_it_writes_on_the_module(x):
    class Counting(Equation):
        def __init__(self, **options):
            super().__init__("BTD,DE->BTE", (WIDTH, WIDTH), **options)
            self.calls = 0

        def __call__(self, x):
            self.calls += 1
            return super().__call__(x)

    model = attach(nnx.Dict(q=Counting(rngs=nnx.Rngs(0))), ["q"], rngs=nnx.Rngs(1), dtype=float)
    model.q(x)
    model.q(x)
    assert model.q.calls == 2


def test_layers_alike_are_tried_once():
    calls = []

    def use(own, x):
        calls.append(own)
        return x @ own.w

    trials, axes = {}, KernelAxes((-2,), (-1,))
    found = [find_equation(Odd(use), "w", (4, 4), axes, trials) for _ in range(3)]
    assert found[0] is not None
    assert found == [found[0]] * 3
    assert len(calls) == 4  # two traces, two kernels
    assert find_equation(Odd(lambda own, x: x @ own.w.T), "w", (4, 4), axes, trials) is None


@pytest.mark.parametrize("is_scored", [False, True])
@pytest.mark.parametrize("is_called_once", [False, True])
def test_a_step_takes_the_memory_of_a_layer_of_flax(is_scored, is_called_once):
    """Temporaries of a compiled step with a declared 512 × 512 kernel, and with `nnx.Linear`."""
    width, rows = 512, jnp.ones((2, 8, 512))

    def temporaries(layer):
        model = nnx.Dict(layer=layer)
        method = il.increlora(model, steps=100)
        trainer, state, base = il.prepare(
            model, method, total_steps=100, is_called_once=is_called_once,
            loss=lambda m, x: (jnp.sum(m.layer(x) ** 2), jnp.ones(())),
        )  # fmt: skip
        step = jax.jit(trainer.step, static_argnames="is_scored", donate_argnums=0)
        compiled = step.lower(state, base, rows, is_scored=is_scored).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    rngs = nnx.Rngs(0)
    of_flax = temporaries(nnx.Linear(width, width, use_bias=False, rngs=rngs))
    of_others = temporaries(Equation("BTD,DE->BTE", (width, width), rngs=rngs))
    assert of_others <= 1.15 * of_flax

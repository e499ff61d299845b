import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.core.adapter import effective_update
from increlora_jax.core.importance import sensitivity
from increlora_jax.core.probe import ScoreProbe
from increlora_jax.errors import InputError
from increlora_jax.nn.any_model import attach, plan_targets
from increlora_jax.nn.kernels import KernelAxes
from increlora_jax.nn.linen import LinenModel, parameter_selector, split
from tests.nn.conftest import assert_twice, with_alpha

DECLARED = {r"mix\.w": KernelAxes((0,), (1, 2))}


class Mix(nn.Module):
    """Somebody's own layer."""

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.normal(), (4, 2, 3), float)
        return jnp.einsum("bd,dnh->bnh", x, w)


class Net(nn.Module):
    """Every kind of layer, one of them called twice, and one with running averages."""

    @nn.compact
    def __call__(self, x, is_training=False):
        x = nn.BatchNorm(use_running_average=True, param_dtype=float)(x)
        x = nn.Dropout(0.5, deterministic=not is_training)(x)
        twice = nn.Dense(4, param_dtype=float, name="twice")
        x = twice(jnp.tanh(twice(x)))
        x = Mix(name="mix")(x)
        x = nn.Einsum((3, 2, 5), "bnh,hnk->bk", param_dtype=float, name="einsum")(x)
        x = nn.DenseGeneral((2, 3), param_dtype=float, name="split")(x)
        return nn.DenseGeneral(2, axis=(-2, -1), param_dtype=float, name="join")(x)


@pytest.fixture
def x(float64):
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)))


@pytest.fixture
def model(x):
    return LinenModel(Net(), Net().init(jax.random.key(0), x), x)


@pytest.fixture
def apart(model, scaling):
    """The model, adapted and taken apart, with updates that show."""
    adapted = attach(
        model, "all-linear", parameters=DECLARED, max_rank=2, scaling=scaling, rngs=nnx.Rngs(1),
        dtype=jnp.float64,
    )  # fmt: skip
    skeleton, parts = split(adapted, lambda path: path == "join.bias")
    draw = np.random.default_rng(1)
    adapters = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape)), parts.adapters)
    return skeleton, parts._replace(adapters=adapters)


def test_layers_and_declared_parameters_are_targets(model):
    assert plan_targets(model, "all-linear", parameters=DECLARED).sizes == {
        "einsum": (6, 5), "join": (6, 2), "mix.w": (4, 6), "split": (5, 6), "twice": (4, 4)
    }  # fmt: skip


def test_output_is_that_of_the_plain_module_with_the_updates_in_its_kernels(
    apart, model, scaling, x
):
    skeleton, parts = apart
    merged = skeleton.merge(parts)
    delta = {
        path: effective_update(parts.adapters[path], parts.slots[path], scaling).delta
        for path in parts.adapters
    }
    plain = model.variables["params"]
    by_hand = {
        "einsum": delta["einsum"].reshape(3, 2, 5),
        "split": delta["split"].reshape(5, 2, 3),
        "join": delta["join"].reshape(2, 3, 2),
        "twice": delta["twice"],
    }
    for path, expected in by_hand.items():
        got = merged["params"][path]["kernel"] - plain[path]["kernel"]
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12, err_msg=path)
    got = merged["params"]["mix"]["w"] - plain["mix"]["w"]
    np.testing.assert_allclose(got, delta["mix.w"].reshape(4, 2, 3), rtol=1e-9, atol=1e-12)
    whole = skeleton.assemble(parts)
    np.testing.assert_allclose(whole(x), Net().apply(merged, x), rtol=1e-11)


def test_the_models_own_variables_are_not_touched(apart, model, x):
    skeleton, parts = apart
    before = jax.tree.map(np.asarray, model.variables)
    skeleton.assemble(parts)(x)
    jax.tree.map(np.testing.assert_array_equal, model.variables, before)
    assert set(parts.head) == {"join.bias"}
    assert "batch_stats.BatchNorm_0.mean" in parts.statistics
    assert "twice.kernel" in parts.base


def test_scores_are_those_of_the_kernels_of_a_layer_called_twice_too(apart, x):
    skeleton, parts = apart
    probes = {path: ScoreProbe.of(sensitivity, jnp.zeros(())) for path in skeleton.modules}

    def loss(probes):
        return jnp.sum(jnp.sin(skeleton.assemble(parts, None, probes)(x)))

    scores = jax.grad(loss)(probes)
    merged = skeleton.merge(parts)
    G = jax.grad(lambda v: jnp.sum(jnp.sin(Net().apply(v, x))))(merged)["params"]
    for path, site in skeleton.sites.items():
        module, name = site.kernel.split(".")
        delta = merged["params"][module][name] - parts.base[site.kernel]
        expected = jnp.abs(delta * G[module][name]).sum() / np.sqrt(delta.size)
        np.testing.assert_allclose(scores[path].value, expected, rtol=1e-9, err_msg=path)


def test_the_training_model_brings_its_key_to_dropout(apart, x):
    skeleton, parts = apart
    first, again, other = (
        skeleton.assemble(parts, jax.random.key(k))(x, is_training=True) for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_dropout_falls_on_the_adapters_input_alone(model, scaling, x):
    adapted = attach(
        model, ["twice"], max_rank=2, scaling=scaling, dropout=0.5, rngs=nnx.Rngs(1), dtype=float
    )
    skeleton, parts = split(adapted, lambda path: False)
    plain = skeleton.assemble(parts)(x)
    np.testing.assert_array_equal(skeleton.assemble(parts, jax.random.key(0))(x), plain)  # λ = 0
    parts = parts._replace(adapters=jax.tree.map(jnp.ones_like, parts.adapters))
    calm = skeleton.assemble(parts)(x)
    assert not np.allclose(skeleton.assemble(parts, jax.random.key(0))(x), calm)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("mix", r"mix is a Mix, .*holds mix\.w \[4, 2, 3\].*parameters=\{r'mix\\.w': KernelAxes\("),
        (["BatchNorm_0"], "'BatchNorm_0' matches no Dense, DenseGeneral or Einsum layer"),
    ],
)
def test_targets_that_cannot_be_adapted_are_named(model, targets, message):
    with pytest.raises(InputError, match=message):
        plan_targets(model, targets)


def test_a_stack_along_another_axis_is_refused(x):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(4, name="dense")(x), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = nn.scan(Layer, {"params": 1}, split_rngs={"params": True}, length=3)
            return layers(name="layers")(x, None)[0]

    stack = LinenModel(Stack(), jax.eval_shape(Stack().init, jax.random.key(0), x), x)
    message = r"is stacked along another axis than the first\. Declare .*layers\\\.dense\\\.kernel"
    with pytest.raises(InputError, match=message):
        plan_targets(stack, "all-linear")
    declared = {r"layers\.dense\.kernel": KernelAxes((0,), (2,))}
    assert len(plan_targets(stack, "all-linear", parameters=declared).sizes) == 3


def test_modules_to_train_in_full_are_said_as_targets(model):
    is_trained = parameter_selector(model, ["join"])
    assert [path for path in model.take_apart()[1] if is_trained(path)] == [
        "join.bias", "join.kernel"
    ]  # fmt: skip


def test_another_alpha_scales_every_update(apart):
    skeleton, parts = apart
    alpha = skeleton.scaling.alpha
    none, once, twice = (
        skeleton.merge(with_alpha(skeleton, parts, a)) for a in (0.0, alpha, 2 * alpha)
    )
    assert_twice(none, once, twice)
    jax.tree.map(np.testing.assert_array_equal, once, skeleton.merge(parts))


class SubDense(nn.Dense):
    """A subclass that calls like its parent."""


class OddDense(nn.Dense):
    """A subclass that computes something of its own."""

    @nn.compact
    def __call__(self, x):
        return 2 * super().__call__(x)


class Uncommon(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.remat(SubDense)(4, name="sub")(x)
        x = OddDense(4, name="odd")(x)
        return nn.WeightNorm(nn.Dense(4, name="inner"))(x)


@pytest.fixture
def uncommon(x):
    return LinenModel(Uncommon(), Uncommon().init(jax.random.key(0), x), x)


def test_subclasses_that_call_like_their_parent_are_adapted_and_others_are_named(uncommon):
    with pytest.warns(UserWarning, match="passes over") as told:
        assert plan_targets(uncommon, "all-linear").sizes == {"sub": (4, 4)}
    messages = " ".join(str(each.message) for each in told)
    assert "odd: a OddDense, which computes its output in another way" in messages
    assert "inner: part of a WeightNorm, which computes another kernel" in messages


def test_an_adapted_subclass_is_merged(uncommon, scaling, x):
    adapted = attach(uncommon, "sub", max_rank=2, scaling=scaling, rngs=nnx.Rngs(1), dtype=float)
    skeleton, parts = split(adapted, lambda path: False)
    plain = skeleton.assemble(parts)(x)
    parts = parts._replace(adapters=jax.tree.map(jnp.ones_like, parts.adapters))
    whole = skeleton.assemble(parts)(x)
    np.testing.assert_allclose(whole, Uncommon().apply(skeleton.merge(parts), x), rtol=1e-6)
    assert not np.allclose(whole, plain)


@pytest.mark.parametrize("name", ["odd", "inner"])
def test_a_layer_that_cannot_be_adapted_is_refused_by_name(uncommon, name):
    with pytest.raises(InputError, match=f"target_modules: {name} is .*Exclude {name}"):
        plan_targets(uncommon, [name])

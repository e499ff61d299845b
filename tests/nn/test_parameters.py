import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.core.importance import sensitivity
from increlora_jax.core.probe import ScoreProbe
from increlora_jax.errors import InputError
from increlora_jax.nn.any_model import attach, plan_targets
from increlora_jax.nn.attach import (
    adapters_of,
    detach,
    find_targets,
    merge,
    unmerge,
)
from increlora_jax.nn.kernels import KernelAxes
from increlora_jax.nn.skeleton import split
from increlora_jax.nn.targets import Selection

DECLARED = {
    r"mix\.w": KernelAxes(inputs=(0,), outputs=(1, 2)),
    r"scale\.back": KernelAxes((1,), (0,)),
}


class Mix(nnx.Module):
    """Somebody's own layer: heads made by an einsum of its own, in a method of any name."""

    def __init__(self, rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (4, 2, 3), float))

    def project(self, x):
        return jnp.einsum("bd,dnh->bnh", x, self.w)


class Scale(nnx.Module):
    """Another one, with its matrix the other way round, read twice."""

    def __init__(self, rngs):
        self.back = nnx.Param(jax.random.normal(rngs.params(), (4, 6), float))
        self.gain = nnx.Param(jnp.ones(4))

    def __call__(self, x):
        return jnp.tanh(x @ self.back[...].T) @ self.back * self.gain.sum()


class Own(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.mix, self.scale = Mix(rngs), Scale(rngs)
        self.out = nnx.Linear(6, 2, rngs=rngs, param_dtype=float)

    def __call__(self, x):
        return self.out(self.scale(self.mix.project(x).reshape(-1, 6)))


@pytest.fixture
def make(float64, scaling):
    """Make the model and attach adapters to what its own layers hold, and to Flax's layer."""

    def make(**settings):
        defaults = {"targets": "all-linear", "parameters": DECLARED, "rngs": nnx.Rngs(1)}
        return attach(Own(), **(defaults | {"scaling": scaling, "dtype": float} | settings))

    return make


@pytest.fixture
def stirred(make):
    """The same with updates that show."""
    model, draw = make(max_rank=2), np.random.default_rng(2)
    for own in adapters_of(model).values():
        for value in (own.A, own.lam, own.B):
            value[...] = jnp.asarray(draw.normal(size=value.shape))
    return model


@pytest.fixture
def x(float64):
    return jnp.asarray(np.random.default_rng(3).normal(size=(5, 4)))


def with_deltas(model):
    """A plain model whose parameters hold the updates, arranged by hand."""
    plain, delta = Own(), {p: own.update.delta for p, own in adapters_of(model).items()}
    plain.mix.w[...] += delta["mix.w"].reshape(4, 2, 3)
    plain.scale.back[...] += delta["scale.back"].T
    plain.out.kernel[...] += delta["out"]
    return plain


def test_declared_parameters_are_targets_by_their_paths(make):
    sizes = plan_targets(Own(), "all-linear", parameters=DECLARED).sizes
    assert sizes == {"mix.w": (4, 6), "out": (6, 2), "scale.back": (6, 4)}
    assert list(adapters_of(make(targets=["w"]))) == ["mix.w"]


def test_modules_read_the_effective_parameter_and_store_the_plain_one(stirred, x):
    np.testing.assert_allclose(stirred(x), with_deltas(stirred)(x), rtol=1e-12)
    held = dict(nnx.to_flat_state(nnx.state(stirred, nnx.Param)))
    np.testing.assert_array_equal(held["mix", "w"].get_value(), Own().mix.w[...])
    assert isinstance(stirred.mix, Mix)


def test_a_new_adapter_changes_nothing_bit_for_bit(make, x):
    np.testing.assert_array_equal(make()(x), Own()(x))


def test_merge_unmerge_and_detach(stirred, x):
    adapted = stirred(x)
    np.testing.assert_allclose(merge(stirred)(x), adapted, rtol=1e-12)
    np.testing.assert_array_equal(unmerge(stirred)(x), adapted)
    with pytest.raises(ValueError, match="not merged"):
        unmerge(stirred)
    detach(merge(stirred))
    assert type(stirred.mix) is Mix
    np.testing.assert_allclose(stirred(x), adapted, rtol=1e-12)
    assert nnx.graphdef(stirred) == nnx.graphdef(Own())


def test_scores_are_those_of_the_effective_parameters_however_often_read(stirred, x):
    skeleton, parts = split(stirred, lambda path: False)
    np.testing.assert_array_equal(skeleton.assemble(parts)(x), stirred(x))

    def loss(probes):
        return jnp.sum(jnp.sin(skeleton.assemble(parts, None, probes)(x)))

    probe = ScoreProbe.of(sensitivity, jnp.zeros(()))
    scores = jax.grad(loss)(dict.fromkeys(skeleton.modules, probe))
    plain = with_deltas(stirred)
    gradient = nnx.grad(lambda m: jnp.sum(jnp.sin(m(x))))(plain)
    for path, G in {
        "mix.w": gradient["mix"]["w"].get_value().reshape(4, 6),
        "scale.back": gradient["scale"]["back"].get_value().T,
        "out": gradient["out"]["kernel"].get_value(),
    }.items():
        expected = jnp.abs(adapters_of(stirred)[path].update.delta * G).sum() / np.sqrt(G.size)
        np.testing.assert_allclose(scores[path].value, expected, rtol=1e-11, err_msg=path)


def test_state_written_into_the_model_reaches_the_stored_parameter(stirred):
    nnx.update(stirred, jax.tree.map(jnp.zeros_like, nnx.state(stirred, nnx.Param)))
    assert not vars(stirred.mix)["w"].get_value().any()


@pytest.mark.parametrize("targets", ["mix", ["out", "mix"], r"mix|out"])
def test_a_target_that_is_somebodys_own_layer_asks_for_a_declaration(targets):
    message = r"mix is a Mix.*holds mix\.w \[4, 2, 3\].*parameters=\{r'mix\\.w': KernelAxes\("
    with pytest.raises(InputError, match=message):
        find_targets(Own(), Selection(targets))


def test_what_is_excluded_needs_no_declaration():
    found = find_targets(Own(), Selection(r".*", [r"mix", "scale"]))
    assert list(found) == ["out"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({r"mix\.v": KernelAxes()}, r"parameters: 'mix\\\\.v' matches no parameter.*mix\.w"),
        ({r"mix\.w": KernelAxes((0,), (3,))}, r"mix\.w \[4, 2, 3\] is no matrix by"),
        ({r"mix\.w": KernelAxes((0,), (2,))}, r"mix\.w .* has stack axes behind others"),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        find_targets(Own(), Selection(parameters=parameters))


def test_dropout_on_effective_weights_is_refused(make):
    with pytest.raises(InputError, match=r"mix\.w: .*Set lora_dropout to 0"):
        make(dropout=0.1)

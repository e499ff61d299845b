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
from increlora_jax.nn.tree import parameter_selector, split, take_apart
from tests.nn.conftest import assert_twice, with_alpha

DECLARED = {
    "conv": KernelAxes(inputs=(0, 1, 2), outputs=(3,)),
    r"stack\.w": KernelAxes((1,), (2,)),
    r"dense\.0\.weight": KernelAxes((1,), (0,)),
}


@pytest.fixture
def params(float64):
    """A tree of all sorts of leaves."""
    draw = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(draw.normal(size=shape))

    return {
        "conv": array(2, 2, 3, 4),
        "dense": [{"weight": array(5, 4), "bias": array(5)}, {"weight": array(5, 2)}],
        "stack": {"w": array(3, 4, 4), "name": "text"},
        "steps": jnp.arange(4).reshape(2, 2),
        "activation": jnp.tanh,
    }


@pytest.fixture
def apart(params, scaling):
    """The tree, adapted and taken apart, with updates that show."""
    model = attach(
        params, "all-linear", parameters=DECLARED, max_rank=2, scaling=scaling,
        rngs=nnx.Rngs(1), dtype=jnp.float64,
    )  # fmt: skip
    skeleton, parts = split(model, lambda path: path.endswith("bias"))
    draw = np.random.default_rng(1)
    adapters = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape)), parts.adapters)
    return skeleton, parts._replace(adapters=adapters)


def deltas_of(parts, scaling):
    """Every ΔW in its place, arranged by hand."""
    delta = {
        path: effective_update(parts.adapters[path], parts.slots[path], scaling).delta
        for path in parts.adapters
    }
    return {
        "conv": delta["conv"].reshape(2, 2, 3, 4),
        "dense.0.weight": delta["dense.0.weight"].T,
        "dense.1.weight": delta["dense.1.weight"],
        "stack.w": delta["stack.w"],
    }


def test_every_matrix_is_a_module_and_each_of_a_stack_its_own(params):
    assert plan_targets(params, "all-linear", parameters=DECLARED).sizes == {
        "conv": (12, 4),
        "dense.0.weight": (4, 5),
        "dense.1.weight": (5, 2),
        "stack.w[0]": (4, 4),
        "stack.w[1]": (4, 4),
        "stack.w[2]": (4, 4),
    }
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype) if hasattr(a, "dtype") else a, params
    )
    assert list(plan_targets(abstract, ["weight"]).sizes) == ["dense.0.weight", "dense.1.weight"]


def test_effective_weights_are_those_of_the_equation(apart, params, scaling):
    skeleton, parts = apart
    whole = skeleton.assemble(parts)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    assert whole["activation"] is jnp.tanh
    expected = deltas_of(parts, scaling)
    plain, got = take_apart(params)[1], take_apart(whole)[1]
    for path, value in plain.items():
        np.testing.assert_allclose(got[path], value + expected.get(path, 0), rtol=1e-13)


def test_gradients_and_scores_are_those_of_the_dense_weights(apart, scaling):
    skeleton, parts = apart

    def loss(tree):
        arrays = take_apart(tree)[1]
        return sum(
            jnp.sum(jnp.sin(arrays[path]) ** 2) for path in sorted(deltas_of(parts, scaling))
        )

    def of_parts(adapters, probes):
        return loss(skeleton.assemble(parts._replace(adapters=adapters), None, probes))

    probes = {
        path: ScoreProbe.of(sensitivity, jnp.zeros(s.is_advancing.shape))
        for path, s in parts.slots.items()
    }
    got, scores = jax.grad(of_parts, argnums=(0, 1))(parts.adapters, probes)
    whole = take_apart(skeleton.assemble(parts))[1]
    G = {path: jnp.sin(2 * whole[path]) for path in probes}
    for path, delta in deltas_of(parts, scaling).items():
        axes = tuple(range(1, 3)) if path == "stack.w" else None
        size = np.prod(np.shape(delta)[-2:]) if path == "stack.w" else delta.size
        expected = jnp.abs(delta * G[path]).sum(axis=axes) / np.sqrt(size)
        np.testing.assert_allclose(scores[path].value, expected, rtol=1e-12, err_msg=path)
    adapter, slots = parts.adapters["dense.1.weight"], parts.slots["dense.1.weight"]
    update = effective_update(adapter, slots, scaling)
    expected = update.scale * (G["dense.1.weight"] @ adapter.B.T) * update.lam_hat
    np.testing.assert_allclose(got["dense.1.weight"].A, expected, rtol=1e-12, atol=1e-14)


def test_parts_hold_every_array_once(apart, params):
    _, parts = apart
    arrays = take_apart(params)[1]
    assert parts.head.keys() == {"dense.0.bias"}
    assert parts.head.keys() | parts.base.keys() == arrays.keys()
    assert not parts.head.keys() & parts.base.keys()


def test_a_narrow_weight_is_rounded_once(scaling):
    params = {"w": jnp.ones((4, 4), jnp.bfloat16)}
    skeleton, parts = split(
        attach(params, "w", scaling=scaling, rngs=nnx.Rngs(0), max_rank=2), lambda path: False
    )
    assert skeleton.assemble(parts)["w"].dtype == jnp.bfloat16
    assert parts.adapters["w"].A.dtype == jnp.float32


@pytest.mark.parametrize(
    ("targets", "parameters", "message"),
    [
        ("dens", {}, "target_modules: 'dens' matches no matrix of the model"),
        ("conv", {}, r"conv is an array of more than two axes.*parameters=\{r'conv': KernelAxes"),
        ("all-linear", {"cnv": KernelAxes()}, "parameters: 'cnv' matches no parameter"),
    ],
)
def test_targets_that_do_not_fit_are_named(params, targets, parameters, message):
    with pytest.raises(InputError, match=message):
        plan_targets(params, targets, parameters=parameters)


def test_axes_that_are_not_named_are_a_stack(params):
    sizes = plan_targets(params, "conv", parameters={"conv": KernelAxes()}).sizes
    assert sizes == {f"conv[{i},{j}]": (2, 2) for i in range(3) for j in range(4)}


def test_dropout_has_no_place_in_effective_weights(params, scaling):
    with pytest.raises(InputError, match="Set lora_dropout to 0"):
        attach(params, "all-linear", scaling=scaling, dropout=0.1, rngs=nnx.Rngs(0))


def test_two_arrays_of_one_path_are_refused():
    with pytest.raises(InputError, match=r"two arrays of the tree have the path a\.b"):
        take_apart({"a.b": jnp.ones(2), "a": {"b": jnp.ones(2)}})


def test_subtrees_to_train_in_full_are_said_as_targets(params):
    is_trained = parameter_selector(params, ["dense.0", "w"])
    chosen = [path for path in take_apart(params)[1] if is_trained(path)]
    assert chosen == ["dense.0.bias", "dense.0.weight", "stack.w"]
    with pytest.raises(InputError, match="modules_to_save: 'head' matches no subtree"):
        parameter_selector(params, ["head"])


def test_another_alpha_scales_every_update(apart):
    skeleton, parts = apart
    alpha = skeleton.scaling.alpha
    none, once, twice = (
        take_apart(skeleton.merge(with_alpha(skeleton, parts, a)))[1]
        for a in (0.0, alpha, 2 * alpha)
    )
    assert_twice(none, once, twice)
    jax.tree.map(np.testing.assert_array_equal, once, take_apart(skeleton.merge(parts))[1])

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.core.importance import sensitivity
from increlora_jax.core.probe import ScoreProbe
from increlora_jax.core.product import apply_update
from increlora_jax.nn.attach import adapted_layers
from increlora_jax.nn.skeleton import split
from tests.nn.conftest import assert_twice, with_alpha


def trains_head(path):
    return path.startswith("head.")


def trains_nothing(path):
    return False


@pytest.fixture
def model(make_net, attach_all, stir):
    return stir(attach_all(make_net()))


def test_every_array_is_in_exactly_one_part(model, all_targets):
    _, parts = split(model, trains_head)
    assert list(parts.adapters) == list(parts.slots) == all_targets
    assert sorted(parts.head) == ["head.bias", "head.kernel"]
    flat = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))}
    streams = {path for path in flat if path.rpartition(".")[2] in ("key", "count")}
    streams |= {path for path in flat if "rngs" in path}
    assert parts.learned().keys().isdisjoint(parts.base)
    assert parts.learned().keys() | parts.base.keys() == flat - streams


def test_parts_put_together_compute_what_the_model_does(model, ids):
    skeleton, parts = split(model, trains_head)
    np.testing.assert_array_equal(skeleton.assemble(parts)(ids), model(ids))


def test_parts_may_be_other_than_the_model_they_came_from(model, ids):
    skeleton, parts = split(model, trains_head)
    before = model(ids)
    doubled = {name: 2 * value for name, value in parts.head.items()}
    got = skeleton.assemble(parts._replace(head=doubled))(ids)
    np.testing.assert_array_equal(skeleton.assemble(parts)(ids), before)
    state = nnx.state(model)
    for variable in (state["head"]["kernel"], state["head"]["bias"]):
        variable[...] = 2 * variable[...]
    nnx.update(model, state)
    np.testing.assert_array_equal(got, model(ids))
    assert not np.allclose(got, before)


def test_module_order_is_the_models_and_not_the_dictionaries(make_net, attach_all, ids):
    model = attach_all(make_net(blocks=11), targets=r"blocks\.\d+")
    skeleton, parts = split(model, trains_head)
    assert skeleton.modules == tuple(f"blocks.{i}" for i in range(11))
    jitted = jax.jit(lambda parts: parts)(parts)  # jax sorts dictionaries
    assert list(jitted.adapters)[:3] == ["blocks.0", "blocks.1", "blocks.10"]
    np.testing.assert_array_equal(skeleton.assemble(jitted)(ids), model(ids))


def test_what_learns_of_a_narrow_model_is_kept_wide(make_net, attach_all):
    model = attach_all(make_net(param_dtype=jnp.bfloat16))
    before = model.head.kernel[...]
    _, parts = split(model, trains_head)
    assert {value.dtype for value in parts.head.values()} == {jnp.dtype(jnp.float32)}
    assert {value.dtype for value in parts.base.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {a.A.dtype for a in parts.adapters.values()} == {jnp.dtype(jnp.float32)}
    np.testing.assert_array_equal(parts.head["head.kernel"], before.astype(jnp.float32))


def test_double_precision_is_not_narrowed(float64, make_net):
    _, parts = split(make_net(param_dtype=jnp.float64), trains_head)
    assert parts.head["head.kernel"].dtype == jnp.float64


def test_statistics_are_never_trained():
    model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    _, parts = split(model, lambda path: True)
    assert sorted(parts.head) == ["bias", "scale"]
    assert sorted(parts.statistics) == ["mean", "var"]
    assert not parts.base


@pytest.fixture
def dropped(make_net, attach_all, stir):
    return split(stir(attach_all(make_net(), dropout=0.5)), trains_head)


def test_dropout_follows_its_key_alone(dropped, ids):
    skeleton, parts = dropped
    first, again, other = (skeleton.assemble(parts, jax.random.key(k))(ids) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_without_a_key_there_is_no_dropout(dropped, make_net, attach_all, stir, ids):
    skeleton, parts = dropped
    plain = stir(attach_all(make_net()))
    np.testing.assert_array_equal(skeleton.assemble(parts)(ids), plain(ids))
    assert not np.allclose(skeleton.assemble(parts, jax.random.key(1))(ids), plain(ids))


def test_every_dropout_of_the_model_draws_its_own(float64, make_net, attach_all):
    skeleton, parts = split(attach_all(make_net(), dropout=0.5), trains_nothing)
    model = skeleton.assemble(parts, jax.random.key(1))
    drops = [
        np.asarray(layer.adapter.dropout(jnp.ones((4, 8))) == 0)
        for path, layer in adapted_layers(model).items()
        if path.startswith("blocks.")
    ]
    assert len({drop.tobytes() for drop in drops}) == 3


def test_probes_reach_their_layers(float64, make_net, attach_all, stir):
    model = stir(attach_all(make_net(param_dtype=jnp.float64), dtype=jnp.float64))
    skeleton, parts = split(model, trains_nothing)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)))

    def loss(probes):
        model = skeleton.assemble(parts, None, probes)
        return jnp.sum(jnp.sin(model.blocks[1](x))) + jnp.sum(model.blocks[2](x))

    probe = ScoreProbe.of(sensitivity, jnp.zeros(()))
    scores = jax.grad(loss)(dict.fromkeys(skeleton.modules, probe))
    assert {path for path, score in scores.items() if score.value != 0} == {"blocks.1", "blocks.2"}
    update = model.blocks[2].adapter.update
    G = np.asarray(x).T @ np.ones((5, 8))
    expected = np.abs(np.asarray(update.delta) * G).sum() / 8
    np.testing.assert_allclose(scores["blocks.2"].value, expected, rtol=1e-12)
    same = lambda x: x  # noqa: E731
    added = model.blocks[2].adapter.add_to(jnp.zeros((5, 8)), x, same, same)
    np.testing.assert_allclose(added, apply_update(x, update), rtol=1e-12, atol=1e-12)


def test_a_skeleton_is_a_static_argument(dropped):
    skeleton, _ = dropped
    assert not jax.tree.leaves(skeleton.graphdef)
    assert hash(skeleton.graphdef) == hash(skeleton.graphdef)


def test_a_shared_layer_is_taken_apart_once():
    class Shared(nnx.Module):
        def __init__(self):
            self.z = self.a = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.z(jnp.tanh(self.a(x)))

    model = Shared()
    skeleton, parts = split(model, trains_nothing)
    assert sorted(parts.base) == ["a.bias", "a.kernel"]
    rebuilt = skeleton.assemble(parts)
    assert rebuilt.a is rebuilt.z
    np.testing.assert_array_equal(rebuilt(jnp.ones((2, 4))), model(jnp.ones((2, 4))))


def test_another_alpha_scales_every_update_and_may_be_traced(model, ids):
    skeleton, parts = split(model, trains_head)
    alpha = skeleton.scaling.alpha
    none, once, twice = (
        nnx.state(skeleton.merge(with_alpha(skeleton, parts, a)), nnx.Param)
        for a in (0.0, alpha, 2 * alpha)
    )
    assert_twice(none, once, twice)
    traced = jax.jit(lambda a: skeleton.assemble(with_alpha(skeleton, parts, a))(ids))(alpha)
    np.testing.assert_allclose(traced, model(ids), rtol=1e-5, atol=1e-6)

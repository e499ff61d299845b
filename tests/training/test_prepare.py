"""One model by three ways in, and as a stack of layers: the same run, number for number."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.config import AdapterConfig, GrowthConfig, TrainingConfig
from increlora_jax.errors import InputError
from increlora_jax.methods.increlora import increlora
from increlora_jax.methods.lora import lora
from increlora_jax.nn.adapter_files import load_adapter, save_adapter
from increlora_jax.nn.linen import LinenModel
from increlora_jax.nn.report import report
from increlora_jax.training.prepare import prepare
from tests.tiny import assert_same
from tests.ways import LAYERS, WAYS, WIDTH

STEPS = 9
GROWTH = {"target_rank": 2, "top_h": 1, "init_warmup": 1, "incre_interval": 2}


class Ran(NamedTuple):
    """A run at its end, and what every step told."""

    trainer: Any
    state: Any
    base: Any
    infos: list


def settings_of(way, **growth):
    return {
        "targets": way.targets,
        "parameters": way.parameters,
        "adapter": AdapterConfig(),
        "growth": GrowthConfig(**(GROWTH | growth)),
        "is_trained": lambda path: path.startswith("head."),
        "dtype": jnp.float64,
    }


def inputs_of(seed):
    return np.random.default_rng(seed).normal(size=(5, WIDTH))


def begin(way, start=None):
    """Make a run ready; its adapters start as those of `start`, in module order."""
    model = way.make()
    method = increlora(model, steps=STEPS, **settings_of(way))
    config = TrainingConfig(learning_rate=0.05, warmup_steps=1)
    trainer, state, base = prepare(model, method, config, total_steps=STEPS, dtype=jnp.float64)
    if start is not None:
        state = state._replace(params=state.params._replace(adapter=alike(state, start)))
    return trainer, state, base


def alike(state, start):
    """The adapters of `start`, by the paths of `state`, stacked if need be."""
    drawn, own = list(start.params.adapter.values()), state.params.adapter
    if len(own) == 1:
        return {path: jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn) for path in own}
    return dict(zip(own, drawn, strict=True))


def train(way, trainer, state, base):
    def loss(model, x):
        return jnp.mean(jnp.square(way.call(model, x) - x[:, :1])), "aux"

    @jax.jit
    def step(state, base, x):
        (_, aux), gradients = trainer.value_and_grad(loss, has_aux=True)(state, base, x)
        assert aux == "aux"
        return trainer.update(state, gradients)

    infos = []
    for t in range(STEPS):
        state, info = step(state, base, inputs_of(t))
        infos.append(info)
    assert step._cache_size() == 1
    return Ran(trainer, state, base, infos)


@pytest.fixture(scope="module")
def first():
    """The state before the first step of the plainest way."""
    with jax.enable_x64(True):
        return begin(WAYS["nnx"])[1]


@pytest.fixture(scope="module")
def reference(first):
    """The run of the plainest way."""
    with jax.enable_x64(True):
        return train(WAYS["nnx"], *begin(WAYS["nnx"], first))


@pytest.fixture(scope="module", params=WAYS)
def ran(request, first, reference):
    """A run by each way."""
    with jax.enable_x64(True):
        way = WAYS[request.param]
        if request.param == "nnx":
            return way, reference
        return way, train(way, *begin(way, first))


@pytest.fixture
def float64():
    """Compute in double precision."""
    with jax.enable_x64(True):
        yield


def test_every_way_is_the_same_run(ran, reference):
    for got, expected in zip(ran[1].infos, reference.infos, strict=True):
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            # Sums in another order, and Adam's 1/√v on top of them.
            np.testing.assert_allclose(got[name], value, rtol=1e-8, atol=1e-13, err_msg=name)


def test_growth_is_by_layer_and_spends_the_budget(reference):
    ranks = [info["rank"].tolist() for info in reference.infos]
    assert [sum(row) for row in ranks] == [3, 3, 4, 4, 5, 5, 6, 6, 6]
    assert len(set(map(tuple, ranks))) == 4


def test_layers_of_a_stack_are_modules_of_their_own(ran):
    way, (trainer, state, base, infos) = ran
    counted = report(trainer.parts(state, base))
    assert tuple(counted.ranks) == trainer.skeleton.modules
    assert list(counted.ranks.values()) == infos[-1]["rank"].tolist()
    if "layers" in way.targets and len(state.slots) == 1:
        assert [name[-3:] for name in counted.ranks] == ["[0]", "[1]", "[2]"]
    assert counted.active == 6 * (WIDTH + 1 + WIDTH)
    assert counted.base + counted.head == LAYERS * (WIDTH + 1) * WIDTH + WIDTH + 1


def test_a_merged_model_is_plain_and_computes_the_same(float64, ran):
    way, (trainer, state, base, _) = ran
    x = jnp.asarray(inputs_of(99))
    expected = trainer.predict(state, base, lambda model: way.call(model, x))
    merged = trainer.merge(state, base)
    np.testing.assert_allclose(way.call_merged(merged, x), expected, rtol=1e-11)
    plain = way.make()
    if isinstance(plain, LinenModel):
        plain = plain.variables
    assert jax.tree.structure(merged) == jax.tree.structure(plain)


def test_an_adapter_is_saved_and_loaded(float64, ran, tmp_path):
    way, (trainer, state, base, _) = ran
    parts = trainer.parts(state, base)
    save_adapter(tmp_path / "adapter", parts, {})
    fresh = trainer.parts(begin(way)[1], base)
    assert_same(load_adapter(tmp_path / "adapter", fresh).learned(), parts.learned())


@pytest.mark.parametrize("name", WAYS)
def test_a_model_just_attached_computes_what_it_did_bit_for_bit(float64, name):
    way = WAYS[name]
    trainer, state, base = begin(way)
    x = jnp.asarray(inputs_of(0))
    plain = way.make()
    if isinstance(plain, LinenModel):
        plain = plain.variables
    got = trainer.predict(state, base, lambda model: way.call(model, x))
    np.testing.assert_array_equal(got, way.call_merged(plain, x))


def test_without_advance_learning_a_reserve_changes_nothing_at_all(float64, first):
    way = WAYS["tree"]
    model = way.make()
    method = increlora(model, steps=STEPS, **settings_of(way, advance_learn=False))
    trainer, state, base = prepare(model, method, TrainingConfig(), total_steps=STEPS)
    x = jnp.asarray(inputs_of(0))
    gradients = trainer.value_and_grad(lambda m, x: jnp.sum(way.call(m, x)))(state, base, x)[1]
    after, _ = trainer.update(state, gradients)  # the reserve opens; warmup keeps the rate at 0
    assert all(slots.reserve.any() for slots in after.slots.values())
    got = trainer.predict(after, base, lambda model: way.call(model, x))
    np.testing.assert_array_equal(got, way.call(way.make(), x))


def test_a_trainer_without_a_loss_says_what_its_step_needs(float64, first):
    trainer, state, base = begin(WAYS["nnx"])
    with pytest.raises(InputError, match="made without a loss"):
        trainer.step(state, base, {}, is_scored=False)


@pytest.mark.parametrize("name", [name for name in WAYS if "stacked" in name or "scanned" in name])
def test_lora_takes_every_way_too(float64, name):
    way = WAYS[name]
    model = way.make()
    settings = settings_of(way)
    _, state, _ = prepare(model, lora(model, **settings), TrainingConfig(), total_steps=9)
    (adapter,) = state.params.adapter.values()
    assert adapter.A.shape == (LAYERS, WIDTH, 2)
    assert not adapter.B.any()
    assert adapter.lam.tolist() == [[1.0, 1.0]] * LAYERS

"""Every importance by every way in: one score, however the gradient is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.config import AdapterConfig, GrowthConfig, TrainingConfig
from increlora_jax.core.importance import IMPORTANCE_FUNCTIONS
from increlora_jax.methods.increlora import increlora
from increlora_jax.training.prepare import prepare
from tests.ways import LAYERS, WAYS, WIDTH

STEPS, ROWS = 5, 4
GROWTH = {"target_rank": 2, "top_h": 3, "init_warmup": 0, "incre_interval": 2}


def prepared(way, importance, *, accumulation=1, is_called_once=False):
    """A trainer, and a state whose slots are active, reserve and dormant, with λ that shows."""
    model = way.make()
    method = increlora(
        model,
        steps=STEPS,
        targets=way.targets,
        parameters=way.parameters,
        adapter=AdapterConfig(),
        growth=GrowthConfig(**GROWTH, importance=importance),
        dtype=jnp.float64,
    )
    config = TrainingConfig(gradient_accumulation_steps=accumulation)

    def loss(model, batch):
        errors = jnp.square(way.call(model, batch["x"]) - batch["y"])
        return jnp.sum(errors), jnp.asarray(errors.size, float)

    trainer, state, base = prepare(
        model, method, config, total_steps=STEPS, loss=loss, dtype=jnp.float64,
        is_called_once=is_called_once,
    )  # fmt: skip
    return trainer, stirred(state), base


def stirred(state):
    """The state of a later step, the same by every way."""
    draw = np.random.default_rng(0)
    shape = next(iter(state.params.adapter.values())).A.shape[-1]
    drawn = {
        "A": 0.3 * draw.normal(size=(LAYERS, WIDTH, shape)),
        "lam": 0.3 * draw.normal(size=(LAYERS, shape)),
        "B": 0.3 * draw.normal(size=(LAYERS, shape, WIDTH)),
    }
    place = jnp.arange(shape)

    def of(index, path):
        own = {name: value if index is None else value[index] for name, value in drawn.items()}
        adapter = state.params.adapter[path]
        adapter = adapter._replace(**{name: jnp.asarray(value) for name, value in own.items()})
        slots = state.slots[path]
        masks = {"active": place < 1, "reserve": place == 1}
        masks = {n: jnp.broadcast_to(m, slots.active.shape) for n, m in masks.items()}
        ahead = jnp.ones_like(slots.is_advancing)
        return adapter, slots._replace(**masks, is_advancing=ahead)

    paths = list(state.slots)
    found = {p: of(None if len(paths) == 1 else i, p) for i, p in enumerate(paths)}
    adapters = {path: adapter for path, (adapter, _) in found.items()}
    slots = {path: slots for path, (_, slots) in found.items()}
    return state._replace(params=state.params._replace(adapter=adapters), slots=slots)


def batch_of():
    draw = np.random.default_rng(1)
    return {"x": draw.normal(size=(ROWS, WIDTH)), "y": draw.normal(size=(ROWS, 1))}


def scores(way, step=None, **settings):
    """Each importance's scores of one step, in one program."""
    begun = {name: prepared(way, name, **settings) for name in IMPORTANCE_FUNCTIONS}

    def all_steps(states, bases, batch):
        return {
            name: (step or plain_step)(trainer, states[name], bases[name], batch)
            for name, (trainer, _, _) in begun.items()
        }

    states, bases = ({n: of[place] for n, of in begun.items()} for place in (1, 2))
    return jax.device_get(jax.jit(all_steps)(states, bases, batch_of()))


def plain_step(trainer, state, base, batch):
    if trainer.accumulation > 1:
        batch = {name: value.reshape(2, ROWS // 2, -1) for name, value in batch.items()}
    return trainer.step(state, base, batch, is_scored=True)[1]["importance"]


@pytest.fixture(scope="module")
def expected():
    """The scores of the plainest way."""
    with jax.enable_x64(True):
        return scores(WAYS["nnx"])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def check(got, expected):
    for name, wanted in expected.items():
        if name == "random":  # drawn by the shapes of the arrays
            assert ((got[name] > 0) & (got[name] < 1)).all()
            assert len(set(got[name])) == LAYERS
        else:
            np.testing.assert_allclose(got[name], wanted, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", WAYS)
def test_every_way_in_gives_the_scores_of_the_plainest(name, expected):
    check(scores(WAYS[name]), expected)


@pytest.mark.parametrize("name", ["linen scanned", "tree"])
def test_micro_batches_are_scored_as_a_whole(name, expected):
    check(scores(WAYS[name], accumulation=2), expected)


@pytest.mark.parametrize(("name", "accumulation"), [("nnx", 1), ("nnx scanned", 2)])
def test_layers_called_once_are_scored_alike(name, accumulation, expected):
    check(scores(WAYS[name], accumulation=accumulation, is_called_once=True), expected)


@pytest.mark.parametrize("name", ["linen", "nnx declared"])
def test_gradients_averaged_by_a_loop_of_ones_own_are_scored_as_a_whole(name, expected):
    way = WAYS[name]

    def loss(model, batch):
        return jnp.mean(jnp.square(way.call(model, batch["x"]) - batch["y"]))

    def step(trainer, state, base, batch):
        halves = [jax.tree.map(lambda leaf, i=i: leaf[i::2], batch) for i in (0, 1)]
        found = [trainer.value_and_grad(loss)(state, base, half)[1] for half in halves]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / 2, *found)
        return trainer.update(state, mean)[1]["importance"]

    check(scores(way, step, accumulation=2), expected)


@pytest.mark.parametrize("name", ["linen scanned"])
def test_states_that_train_together_are_scored_each_by_itself(name, expected):
    def step(trainer, state, base, batch):
        halved = jax.tree.map(lambda leaf: leaf / 2, state.params.adapter)
        half = state._replace(params=state.params._replace(adapter=halved))
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, half)
        together = jax.vmap(lambda one: plain_step(trainer, one, base, batch))(states)
        return {"together": together, "alone": plain_step(trainer, half, base, batch)}

    found = scores(WAYS[name], step)
    check({name: own["together"][0] for name, own in found.items()}, expected)
    for rule, own in found.items():
        np.testing.assert_allclose(own["together"][1], own["alone"], rtol=1e-9, err_msg=rule)
        if rule not in ("random", "uniform"):
            assert not np.allclose(*own["together"])

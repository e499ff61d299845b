"""Growth under optimizers of others: by name and as optax transformations."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import increlora_jax as il

STEPS, MODULES, BUDGET = 40, 3, 9
NAMED = ("adamw", "lion", "adafactor", "muon", "sgd")
RATES = {"adamw": 0.02, "lion": 0.02, "adafactor": 0.02, "muon": 0.1, "sgd": 1.0}
GIVEN = {
    "adamw": optax.adamw(0.02, weight_decay=0.01),
    "lion": optax.lion(0.02),
    "adafactor": optax.adafactor(0.02, multiply_by_parameter_scale=False),
    "muon": optax.contrib.muon(0.02),
    "sgd": optax.chain(optax.clip(0.1), optax.sgd(0.5, momentum=0.5)),
    "accumulated": optax.MultiSteps(optax.adam(0.05), 2).gradient_transformation(),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), il.slotwise(optax.adam(0.02))),
}
MIXING = ("adafactor", "muon")
DEFAULT = il.TrainingConfig()


@pytest.fixture
def problem():
    """Give parameters, and inputs and outputs of other parameters."""
    draw = np.random.default_rng(0)
    params = {
        f"w{i}": jnp.asarray(draw.normal(size=(8, 8)) / 3, jnp.float32) for i in range(MODULES)
    }
    moved = {name: w + 0.3 * draw.normal(size=(8, 2)) @ draw.normal(size=(2, 8))
             for name, w in params.items()}  # fmt: skip
    x = jnp.asarray(draw.normal(size=(64, 8)), jnp.float32)
    return params, x, forward(moved, x)


def forward(params, x):
    for i in range(MODULES):
        x = jnp.tanh(x @ params[f"w{i}"])
    return x


def train(problem, *, config=DEFAULT, **given):
    params, x, y = problem
    growth = il.GrowthConfig(target_rank=3, top_h=1, init_warmup=1, incre_interval=3)
    method = il.increlora(params, steps=STEPS, growth=growth)
    loss = lambda model, batch: (jnp.sum((forward(model, x) - y) ** 2), x.shape[0])  # noqa: E731
    trainer, state, base = il.prepare(params, method, config, total_steps=STEPS, loss=loss, **given)
    traces = []

    def step(state, base):
        traces.append(1)
        return trainer.step(state, base, {}, is_scored=True)

    jitted, states, infos = jax.jit(step), [state], []
    for _ in range(STEPS):
        state, info = jitted(state, base)
        states.append(state)
        infos.append(info)
    assert len(traces) == 1
    return states, infos


def check(states, infos):
    """Check exact growth, a falling loss and slots that stay where they were before birth."""
    assert int(states[-1].total_rank) == BUDGET
    assert float(infos[-1]["loss"]) < 0.6 * float(infos[0]["loss"])
    first = states[0].params.adapter
    for before, after in pairwise(states):
        step = int(before.step)
        for name, slots in before.slots.items():
            unborn = np.asarray(slots.matrix_born) > step
            own = after.params.adapter[name]
            assert np.array_equal(own.A[:, unborn], first[name].A[:, unborn])
            assert np.array_equal(own.B[unborn], first[name].B[unborn])
    never = [np.asarray(s.matrix_born).max() > STEPS for s in states[-1].slots.values()]
    assert all(never)  # so that some are unborn to the end


@pytest.mark.parametrize("name", NAMED)
def test_growth_is_exact_and_the_loss_falls_by_name(problem, name):
    config = il.TrainingConfig(optimizer=name, learning_rate=RATES[name], warmup_steps=2)
    states, infos = train(problem, config=config)
    check(states, infos)
    assert "learning_rate" in infos[0]


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.filterwarnings("ignore:prepare. optimizer")
def test_growth_is_exact_and_the_loss_falls_with_any_transformation(problem, name):
    states, infos = train(problem, optimizer=GIVEN[name])
    check(states, infos)
    assert "learning_rate" not in infos[0]


@pytest.mark.parametrize("name", GIVEN)
def test_an_optimizer_that_mixes_slots_is_said(problem, name, recwarn):
    params, *_ = problem
    il.prepare(params, il.lora(params), total_steps=9, optimizer=GIVEN[name])
    said = [str(w.message) for w in recwarn if "il.slotwise" in str(w.message)]
    assert len(said) == (name in MIXING)


def test_optax_adam_given_and_by_name_are_one(problem):
    """With a constant rate from birth on and no clip, the own AdamW is optax's in every slot."""
    config = il.TrainingConfig(
        learning_rate=0.02, lr_scheduler_type="constant_with_warmup", warmup_steps=0,
        max_grad_norm=1e9,
    )  # fmt: skip
    own, _ = train(problem, config=config)
    given, _ = train(problem, optimizer=optax.adamw(0.02, weight_decay=0.0))
    pairs = zip(jax.tree.leaves(own[-1].params), jax.tree.leaves(given[-1].params), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)  # float32, 40 steps


def test_settings_that_the_own_optimizer_replaces_are_refused(problem):
    params, *_ = problem
    config = il.TrainingConfig(learning_rate=0.5, adam_beta1=0.5)
    with pytest.raises(il.InputError, match="optimizer: learning_rate, adam_beta1 of config would"):
        il.prepare(params, il.lora(params), config, total_steps=9, optimizer=optax.sgd(1.0))


def test_no_message_about_an_optimizer_names_a_function_that_was_not_called():
    config = il.TrainingConfig(learning_rate=0.5)
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    with pytest.raises(il.InputError, match=r"^optimizer: learning_rate of config"):
        il.growth(model, optax.adam(1e-3), steps=99, config=config)
    with pytest.warns(UserWarning, match=r"^optimizer: it mixes the entries"):
        il.growth(
            nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0))), optax.contrib.muon(1e-3), steps=99
        )

"""Statistics that a forward pass writes are carried from step to step, and used to evaluate."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import increlora_jax as il
from increlora_jax.config import AdapterConfig, GrowthConfig, TrainingConfig
from increlora_jax.methods.increlora import increlora
from increlora_jax.nn.adapter_files import load_adapter, save_adapter
from increlora_jax.nn.linen import LinenModel
from increlora_jax.nn.report import report
from increlora_jax.training.prepare import prepare

STEPS = 3


class Measured(nnx.BatchStat):
    """A type of a user's own."""


class Counted(nnx.Module):
    """A statistic that is a count."""

    def __init__(self):
        self.count = Measured(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.count[...] += 1
        return x


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.body, self.head = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.counted = Counted()

    def __call__(self, x):
        x = self.counted(self.norm(self.body(x)))
        return self.head(jnp.tanh(x))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, is_training=False):
        x = nn.BatchNorm(not is_training, momentum=0.5)(nn.Dense(4, name="body")(x))
        return nn.Dense(1, name="head")(jnp.tanh(x))


def linen():
    x = jnp.ones((2, 4))
    return LinenModel(LinenNet(), LinenNet().init(jax.random.key(0), x), x, is_training=True)


def batch(step):
    return jnp.asarray(np.random.default_rng(step).normal(1.0, 2.0, (8, 4)), jnp.float32)


def loss(model, batch):
    return jnp.sum(jnp.square(model(batch["x"]))), jnp.asarray(8.0)


def mean_of(model, x):
    return loss(model, {"x": x})[0] / 8


def linen_mean(model, x):
    y, _ = model(x, is_training=True, mutable=["batch_stats"])
    return jnp.mean(jnp.square(y))


def begin(model, accumulation=1, rate=1e-9):
    growth = GrowthConfig(target_rank=2, top_h=1, init_warmup=0, incre_interval=1)
    method = increlora(model, steps=9, targets=["body"], adapter=AdapterConfig(), growth=growth)
    config = TrainingConfig(
        learning_rate=rate, warmup_steps=0, gradient_accumulation_steps=accumulation
    )
    return prepare(model, method, config, total_steps=9, loss=loss)


def train(trainer, state, base, loss=mean_of):
    @jax.jit
    def step(state, base, x):
        return trainer.update(state, trainer.value_and_grad(loss)(state, base, x)[1])[0]

    for t in range(STEPS):
        state = step(state, base, batch(t))
    assert step._cache_size() == 1
    return state


def statistics_of(model):
    flat = nnx.to_flat_state(nnx.state(model, nnx.BatchStat))
    return {".".join(map(str, path)): v.get_value() for path, v in flat}


def assert_alike(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def plain():
    """A loop of NNX's own over the same batches, in which only statistics move."""
    model = Net()

    @nnx.jit
    def forward(model, x):
        return model(x)

    model.train()
    for t in range(STEPS):
        forward(model, batch(t))
    model.eval()
    return statistics_of(model), model(batch(9))


@pytest.fixture(scope="module")
def ran():
    """A run of ours at its end, and the state before it."""
    trainer, state, base = begin(Net())
    return trainer, state, train(trainer, state, base), base


def test_statistics_move_as_in_a_loop_of_nnx(plain, ran):
    _, before, state, base = ran
    first = before.statistics
    assert first.keys().isdisjoint(base)
    assert_alike(state.statistics, plain[0])
    assert all((first[name] != value).any() for name, value in state.statistics.items())
    assert state.statistics["counted.count"].dtype == jnp.int32


def test_evaluation_and_merge_use_them(plain, ran, tmp_path):
    trainer, before, state, base = ran
    predicted = trainer.predict(state, base, lambda model: model(batch(9)))
    # The reserve learns in advance, at λ̂ = 1e-5.
    np.testing.assert_allclose(predicted, plain[1], rtol=1e-3, atol=1e-3)
    merged = trainer.merge(state, base)
    merged.eval()
    np.testing.assert_allclose(merged(batch(9)), predicted, rtol=1e-5, atol=1e-5)
    parts = trainer.parts(state, base)
    save_adapter(tmp_path / "adapter", parts, {})
    other = trainer.parts(before, base)
    assert_alike(load_adapter(tmp_path / "adapter", other).statistics, state.statistics)
    save_adapter(tmp_path / "old", parts._replace(statistics={}), {})  # as it was written before
    assert_alike(load_adapter(tmp_path / "old", other).statistics, other.statistics)
    counts = report(parts)
    assert counts.base + counts.head == sum(
        leaf.size for leaf in jax.tree.leaves(nnx.state(Net(), (nnx.Param, nnx.BatchStat)))
    )


def test_micro_batches_move_them_one_after_the_other(plain):
    trainer, state, base = begin(Net(), accumulation=STEPS)
    xs = jnp.stack([batch(t) for t in range(STEPS)])
    state, _ = jax.jit(lambda s, b, x: trainer.step(s, b, {"x": x}, is_scored=True))(
        state, base, xs
    )
    assert_alike(state.statistics, plain[0])


def test_gradients_of_a_users_own_micro_batches_average_them(ran):
    trainer, state, _, base = ran
    differentiate = jax.jit(lambda x: trainer.value_and_grad(mean_of)(state, base, x)[1])
    both = [differentiate(batch(t)) for t in (0, 1)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *both)
    after = jax.jit(trainer.update)(state, mean)[0].statistics
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *(each.statistics for each in both))
    assert_alike(after, {n: v.astype(after[n].dtype) for n, v in expected.items()})


def test_states_that_train_together_have_statistics_of_their_own(plain, ran):
    trainer, state, _, base = ran
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)

    @jax.jit
    @jax.vmap
    def step(state, x):
        return trainer.update(state, trainer.value_and_grad(mean_of)(state, base, x)[1])[0]

    for t in range(STEPS):
        states = step(states, jnp.stack([batch(t), batch(t + 9)]))
    assert_alike({n: v[0] for n, v in states.statistics.items()}, plain[0])
    mean = states.statistics["norm.mean"]
    assert not np.allclose(mean[0], mean[1])


def test_a_step_that_is_not_finite_leaves_them(ran):
    trainer, state, _, base = ran
    gradients = trainer.value_and_grad(mean_of)(state, base, batch(0).at[0, 0].set(jnp.nan))[1]
    after, info = trainer.update(state, gradients)
    assert not info["is_finite"]
    assert_alike(after.statistics, state.statistics)


def test_spectral_norm_comes_to_the_kernels_norm():
    class Spectral(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.body = nnx.Linear(4, 4, rngs=rngs)
            self.normed = nnx.SpectralNorm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)

        def __call__(self, x):
            return self.normed(self.body(x))

    trainer, state, base = begin(Spectral())
    norm = jnp.linalg.norm(base["normed.layer_instance.kernel"], 2)
    evaluate = jax.jit(lambda state: trainer.value_and_grad(mean_of)(state, base, batch(0))[1])
    with warnings.catch_warnings(action="error"):  # it writes the kernel within, as it must
        evaluate(state)
    for _ in range(20):
        state = state._replace(statistics=evaluate(state).statistics)
    (sigma,) = (value for name, value in state.statistics.items() if "sigma" in name)
    np.testing.assert_allclose(sigma, norm, rtol=1e-2)


def test_linen_statistics_move_as_in_a_loop_of_linen():
    model = linen()
    variables = model.variables
    for t in range(STEPS):
        _, moved = LinenNet().apply(variables, batch(t), True, mutable=["batch_stats"])
        variables = variables | moved
    trainer, state, base = begin(linen())
    state = train(trainer, state, base, linen_mean)
    expected = variables["batch_stats"]["BatchNorm_0"]
    got = {n.rpartition(".")[2]: value for n, value in state.statistics.items()}
    assert_alike(got, expected)
    predicted = trainer.predict(state, base, lambda model: model(batch(9)))
    np.testing.assert_allclose(predicted, LinenNet().apply(variables, batch(9)), atol=1e-3)
    merged = trainer.merge(state, base)
    assert jax.tree.structure(merged) == jax.tree.structure(variables)
    np.testing.assert_allclose(LinenNet().apply(merged, batch(9)), predicted, rtol=1e-5, atol=1e-5)


class Memory(nnx.Variable):
    """State of a user's own, which is no statistic."""


class Writes(Net):
    def __init__(self):
        super().__init__()
        self.memory, self.fixed = Memory(jnp.zeros(4)), Memory(jnp.ones(4))

    def __call__(self, x):
        self.memory[...] = x.mean(0) + self.fixed[...]
        self.sow(nnx.Intermediate, "seen", x)
        return super().__call__(x)


def test_other_state_that_is_written_is_named_with_the_remedy():
    trainer, state, base = begin(Writes())
    with pytest.warns(UserWarning, match=r"writes memory \(Memory\), seen \(Interm.*BatchStat"):
        trainer.value_and_grad(mean_of)(state, base, batch(0))


class WritesMore(Net):
    """Parameters, arrays and numbers that the forward pass writes, also within transforms."""

    def __init__(self):
        super().__init__()
        self.step = nnx.Param(jnp.zeros(()))
        self.ema, self.table = jnp.zeros(4), jnp.ones(4)
        self.calls, self.rate, self.is_new = 0, 0.5, True
        self.inner = nnx.Linear(4, 4, rngs=nnx.Rngs(3))

    def __call__(self, x):
        self.ema, self.step[...] = x.mean(0) * self.table, self.step[...] + 1
        self.calls, self.is_new, self.last = self.calls + 1, False, x
        x = nnx.jit(nnx.remat(lambda layer, x: layer(x)))(self.inner, x)
        return super().__call__(x)


def test_parameters_and_attributes_that_are_written_are_named():
    model = WritesMore()
    method = il.lora(model, targets=["body", "inner"], is_trained=lambda path: "head" in path)
    trainer, state, base = il.prepare(model, method, total_steps=STEPS)
    told = (
        r"writes calls \(an attribute\), ema \(an attribute\), last \(an attribute\), "
        r"step \(Param\), which"
    )
    with pytest.warns(UserWarning, match=told):
        jax.jit(trainer.value_and_grad(mean_of))(state, base, batch(0))


class Frozen(nnx.Module):
    """A norm and a dropout that are frozen when they are made, and a dropout that is not."""

    def __init__(self, **modes):
        rngs = nnx.Rngs(0)
        self.body = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.off, self.on = (
            nnx.Dropout(0.5, deterministic=is_off, rngs=rngs) for is_off in (True, False)
        )
        self.modes = modes

    def __call__(self, x):
        return self.on(self.off(self.norm(self.body(x), **self.modes)))


def test_modules_that_the_step_switches_to_training_are_named_once():
    trainer, state, base = begin(Frozen())
    step = jax.jit(trainer.value_and_grad(mean_of), static_argnames="is_scored")
    told = r"2 attributes from True to False: norm.use_running_average, off.deterministic\. To keep"
    with pytest.warns(UserWarning, match=told) as caught:
        _, gradients = step(state, base, batch(0))
    assert len(caught) == 1
    name = next(name for name in state.statistics if name.endswith("mean"))
    assert (gradients.statistics[name] != state.statistics[name]).any()  # they do move
    # The remedies that it names.
    model = Frozen(use_running_average=True)
    model.train()
    with warnings.catch_warnings(action="error"):
        trainer, state, base = begin(model)
        _, gradients = trainer.value_and_grad(mean_of)(state, base, batch(0))
    assert_alike(gradients.statistics, state.statistics)


class LinenWrites(nn.Module):
    @nn.compact
    def __call__(self, x):
        seen = self.variable("memory", "seen", lambda: jnp.zeros(4))
        seen.value = x.mean(0)
        self.sow("intermediates", "x", x)
        return nn.Dense(4, name="body")(x)


def test_another_collection_that_is_written_is_named():
    variables = LinenWrites().init(jax.random.key(0), batch(0))
    variables = {name: variables[name] for name in ("params", "memory")}
    trainer, state, base = begin(LinenModel(LinenWrites(), variables, batch(0)))
    with pytest.warns(UserWarning, match=r"writes memory \(a collection\), which"):
        trainer.value_and_grad(lambda m, x: jnp.sum(m(x, mutable=["memory", "intermediates"])[0]))(
            state, base, batch(0)
        )


def test_a_model_without_any_has_no_more_leaves_and_no_warning():
    model = nnx.Dict(
        body=nnx.Linear(4, 4, rngs=nnx.Rngs(0)), drop=nnx.Dropout(0.5, rngs=nnx.Rngs(1))
    )
    trainer, state, base = begin(model)
    with warnings.catch_warnings(action="error"):
        _, gradients = trainer.value_and_grad(lambda m, x: m.drop(m.body(x)).sum())(
            state, base, batch(0)
        )
    assert (state.statistics, gradients.statistics) == ({}, {})
    assert optax.tree.norm(gradients.params) > 0

"""Growth as an optax transformation, in loops of `nnx.Optimizer`."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import increlora_jax as il
from increlora_jax.core.importance import IMPORTANCE_FUNCTIONS

STEPS = 40
GROWTH = il.GrowthConfig(
    target_rank=3, top_h=1, init_warmup=1, incre_interval=3, importance="lambda_gradient"
)
CONFIG = il.TrainingConfig(learning_rate=0.03, warmup_steps=3, max_grad_norm=0.5)
ADAPTER = il.AdapterConfig(scaling="rank")


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


class Net(nnx.Module):
    def __init__(self, dtype=jnp.float32):
        self.layers = nnx.List(
            [nnx.Linear(6, 6, rngs=nnx.Rngs(i), param_dtype=dtype) for i in range(3)]
        )
        self.out = nnx.Linear(6, 2, rngs=nnx.Rngs(9), param_dtype=dtype)

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.out(x)


def data(step, rows=16, dtype=jnp.float32):
    draw = np.random.default_rng(step)
    x = jnp.asarray(draw.normal(size=(rows, 6)), dtype)
    return x, jnp.stack([x[:, 0] * x[:, 1], x[:, 2]], 1)


def loss_of(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def host(model, optimizer, wrt=nnx.LoRAParam):
    """Give a host's own step, and a count of its traces."""
    traces = []

    @nnx.jit
    def step(model, optimizer, x, y):
        traces.append(1)
        grad = nnx.value_and_grad(loss_of, argnums=nnx.DiffState(0, wrt))
        loss, grads = grad(model, x, y)
        optimizer.update(model, grads)
        return loss

    return step, traces


def scored_host(model, optimizer):
    """Give a host's own step with the paper's score, and a count of its traces."""
    traces = []

    @nnx.jit
    def step(model, optimizer, x, y):
        traces.append(1)
        differentiate = il.scored_value_and_grad(loss_of, is_called_once=True)
        loss, grads, scores = differentiate(model, x, y)
        optimizer.update(model, grads, scores=scores)
        return loss

    return step, traces


def grown(inner=None, *, dtype=jnp.float32, wrap=lambda t: t, **given):
    model = Net(dtype)
    own = {"adapter": ADAPTER, "growth": GROWTH, "targets": "layers.*", "dtype": dtype, **given}
    config = {} if inner else {"config": CONFIG}
    transformation = il.growth(model, inner, steps=STEPS, **config, **own)
    return model, nnx.Optimizer(model, wrap(transformation), wrt=nnx.LoRAParam)


@pytest.mark.parametrize("score", ["lambda_gradient", "sensitivity"])
def test_it_grows_as_the_trainer_does(float64, score):
    """Ranks are equal at every step, and losses to rounding, with the same score and seed."""
    dtype, growth = jnp.float64, replace(GROWTH, importance=score)
    by_host = {"is_scored_by_host": True} if score == "sensitivity" else {}
    model, optimizer = grown(dtype=dtype, growth=growth, **by_host)
    step, traces = (scored_host if by_host else host)(model, optimizer)
    other = Net(dtype)
    method = il.increlora(other, steps=STEPS, adapter=ADAPTER, growth=growth,
                          targets="layers.*", dtype=dtype)  # fmt: skip
    trainer, state, base = il.prepare(other, method, CONFIG, total_steps=STEPS, dtype=dtype)

    @jax.jit
    def theirs(state, x, y):
        value, gradients = trainer.value_and_grad(loss_of)(state, base, x, y)
        return value, *trainer.update(state, gradients)

    for t in range(STEPS):
        batch = data(t, dtype=dtype)
        got = step(model, optimizer, *batch)
        wanted, state, info = theirs(state, *batch)
        np.testing.assert_allclose(got, wanted, rtol=1e-9)
        assert list(il.ranks_of(optimizer).values()) == list(info["rank"])
    assert sum(il.ranks_of(optimizer).values()) == 9
    assert len(traces) == 1
    il.settle(model, optimizer)
    x, _ = data(99, dtype=dtype)
    plain = trainer.merge(state, base)
    np.testing.assert_allclose(model(x), plain(x), rtol=1e-7, atol=1e-9)


def test_the_base_stays_and_the_settled_model_has_its_ranks(tmp_path):
    model, optimizer = grown(optax.adamw(0.03))
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.filterlib.Not(nnx.LoRAParam), ...)[0])
    step, traces = host(model, optimizer)
    losses = [float(step(model, optimizer, *data(t))) for t in range(STEPS)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert len(traces) == 1
    after = nnx.state(model, nnx.filterlib.Not(nnx.LoRAParam), ...)[0]
    assert all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(after)))
    x, _ = data(99)
    shown = model(x)
    ranks = il.ranks_of(optimizer)
    il.settle(model, optimizer)
    np.testing.assert_allclose(model(x), shown, rtol=1e-6)
    il.settle(model, optimizer)  # again: nothing changes
    _, parts = il.split(model, lambda path: False)
    assert il.report(parts).ranks == ranks
    assert sum(ranks.values()) == 9
    il.save_adapter(tmp_path / "adapter", parts)
    np.testing.assert_allclose(il.merge(model)(x), shown, rtol=1e-4, atol=1e-6)


def test_four_micro_batches_grow_as_one_batch():
    wrap = lambda t: optax.MultiSteps(t, 4)  # noqa: E731
    model, optimizer = grown(wrap=wrap)
    whole, one = grown()
    step, _ = host(model, optimizer)
    at_once, _ = host(whole, one)
    for t in range(STEPS):
        x, y = data(t, rows=32)
        at_once(whole, one, x, y)
        for i in range(4):
            step(model, optimizer, x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8])
        assert il.ranks_of(optimizer) == il.ranks_of(one)
    x, _ = data(99)
    np.testing.assert_allclose(model(x), whole(x), rtol=1e-3, atol=1e-4)


def test_a_host_checkpoint_of_its_two_states_resumes_exactly(tmp_path):
    """As tunix saves: the `nnx.LoRAParam`s and the optimizer's state."""
    model, optimizer = grown()
    step, _ = host(model, optimizer)
    for t in range(STEPS // 4):
        step(model, optimizer, *data(t))
    states = {"model": nnx.state(model, nnx.LoRAParam),
              "optimizer": nnx.state(optimizer, nnx.optimizer.OptState)}  # fmt: skip
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", states)
    other, fresh = grown()
    target = {"model": nnx.state(other, nnx.LoRAParam),
              "optimizer": nnx.state(fresh, nnx.optimizer.OptState)}  # fmt: skip
    with ocp.StandardCheckpointer() as checkpointer:
        held = checkpointer.restore(tmp_path / "saved", target)
    nnx.update(other, held["model"])
    nnx.update(fresh, held["optimizer"])
    again, _ = host(other, fresh)
    for t in range(STEPS // 4, STEPS):
        assert float(step(model, optimizer, *data(t))) == float(again(other, fresh, *data(t)))
    assert il.ranks_of(optimizer) == il.ranks_of(fresh)


def test_a_layer_trained_in_full_moves_beside_the_adapters():
    model = Net()
    chosen = nnx.Any(nnx.LoRAParam, nnx.All(nnx.Param, nnx.PathContains("out")))
    transformation = il.growth(model, steps=STEPS, config=CONFIG, growth=GROWTH, targets="layers.*")
    optimizer = nnx.Optimizer(model, transformation, wrt=chosen)
    step, _ = host(model, optimizer, chosen)
    kernels = lambda: {  # noqa: E731
        str(path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(nnx.state(model, nnx.PathContains("kernel")))
    }
    before = kernels()
    for t in range(5):
        step(model, optimizer, *data(t))
    moved = [path for path, leaf in kernels().items() if not np.array_equal(leaf, before[path])]
    assert len(moved) == 1
    assert "'out'" in moved[0]


def test_a_batch_that_is_not_finite_changes_nothing():
    model, optimizer = grown()
    step, _ = host(model, optimizer)
    step(model, optimizer, *data(0))
    before = jax.tree.map(jnp.copy, nnx.state(model))
    x, y = data(1)
    step(model, optimizer, x.at[0, 0].set(jnp.nan), y)
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(nnx.state(model)), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_scores_and_their_transformation_belong_together():
    model, optimizer = grown(
        growth=replace(GROWTH, importance="sensitivity"), is_scored_by_host=True
    )
    with pytest.raises(il.InputError, match=r"scores=…\) is missing"):
        host(model, optimizer)[0](model, optimizer, *data(0))
    model, optimizer = grown()
    with pytest.raises(il.InputError, match="update got scores"):
        scored_host(model, optimizer)[0](model, optimizer, *data(0))
    with pytest.raises(il.InputError, match="lambda_gradient reads no dense gradient"):
        grown(is_scored_by_host=True)


def test_a_layer_that_is_called_twice_is_scored_once():
    """Both uses are summed before the score, unless a layer is called once."""
    model = il.attach(
        nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0))), max_rank=2, initial_rank=2
    )
    adapter = model.layers[0].adapter
    adapter.lam.set_value(jnp.ones(2))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    twice = lambda model, x: jnp.sum(jnp.tanh(model(x)) + model(2 * x) ** 2)  # noqa: E731
    _, _, scores = il.scored_value_and_grad(twice)(model, x)
    kernel = vars(model.layers[0])["kernel"].get_value()
    delta = adapter.update.delta
    of = lambda d: jnp.sum(jnp.tanh(x @ (kernel + d)) + (2 * x @ (kernel + d)) ** 2)  # noqa: E731
    wanted = jnp.sum(jnp.abs(delta * jax.grad(of)(delta))) / 4
    np.testing.assert_allclose(scores["layers.0"], wanted, rtol=1e-4)


def test_an_optimizer_that_follows_the_loss_gets_the_hosts():
    """A loss that stays shrinks the steps, one that falls does not."""
    moves = {}
    for losses in ((4.0, 3.0, 2.0, 1.0), (1.0, 1.0, 1.0, 1.0)):
        plateau = optax.contrib.reduce_on_plateau(factor=0.1, patience=1)
        model, optimizer = grown(optax.chain(optax.sgd(0.1), plateau))
        for t, loss in enumerate(losses):
            before = np.asarray(model.layers[0].adapter.B[...])
            of_adapter = nnx.DiffState(0, nnx.LoRAParam)
            grads = nnx.grad(loss_of, argnums=of_adapter)(model, *data(t))
            optimizer.update(model, grads, value=loss)
        moves[losses] = np.abs(model.layers[0].adapter.B[...] - before).max()
    falls, stays = moves.values()
    assert 0 < stays < 0.2 * falls


def test_one_transformation_begins_several_optimizers_whose_buffers_are_donated():
    model, optimizer = grown()
    grow, params = optimizer.tx, nnx.state(model, nnx.LoRAParam)

    def end():
        update = jax.jit(grow.update, donate_argnums=1)
        own, state = params, grow.init(params)
        for _ in range(3):
            moves, state = update(jax.tree.map(jnp.ones_like, own), state, own)
            own = optax.apply_updates(own, moves)
        return own

    jax.tree.map(np.testing.assert_array_equal, end(), end())


def test_an_optimizer_that_follows_the_loss_asks_for_it():
    plateau = optax.contrib.reduce_on_plateau(patience=1)
    model, optimizer = grown(optax.chain(optax.sgd(0.1), plateau))
    with pytest.raises(il.InputError, match=r"does not get it.*update\(…, value=loss\)"):
        optimizer.update(model, nnx.state(model, nnx.LoRAParam))


def test_accumulation_is_the_hosts():
    config = il.TrainingConfig(gradient_accumulation_steps=4)
    with pytest.raises(il.InputError, match=r"gradient_accumulation_steps is for.*MultiSteps"):
        il.growth(Net(), steps=STEPS, config=config)


def test_scores_of_another_importance_are_refused():
    growth = replace(GROWTH, importance="gradient_norm")
    model, optimizer = grown(growth=growth, is_scored_by_host=True)
    for name, is_right in (("sensitivity", False), ("gradient_norm", True)):
        scored = il.scored_value_and_grad(loss_of, importance=IMPORTANCE_FUNCTIONS[name])
        _, grads, scores = scored(model, *data(0))
        if is_right:
            optimizer.update(model, grads, scores=scores)
        else:
            with pytest.raises(il.InputError, match="of another importance than growth was given"):
                optimizer.update(model, grads, scores=scores)


def test_ranks_of_several_transformations_are_read_together():
    own = {"adapter": ADAPTER, "growth": GROWTH, "steps": STEPS}
    params = {name: {"w_lora_a": jnp.ones((9, 6)), "w_lora_b": jnp.zeros((6, 9))} for name in "ab"}
    parts = {n: il.growth({n: params[n]}, pairs=il.Pairs(1.0), **own) for n in "ab"}
    optimizer = optax.multi_transform(parts, {"a": "a", "b": "b"})
    assert il.ranks_of(optimizer.init(params)) == {"a.w": 1, "b.w": 1}


def test_a_settled_model_that_is_trained_again_is_warned_of():
    model, optimizer = grown()
    il.settle(model, optimizer)
    with pytest.warns(UserWarning, match="no rank grows"):
        nnx.grad(loss_of, argnums=nnx.DiffState(0, nnx.LoRAParam))(model, *data(0))


def test_kernels_that_the_optimizer_gets_are_warned_of():
    model, _ = grown()
    grow = il.growth(Net(), steps=STEPS, targets="layers.*", adapter=ADAPTER, growth=GROWTH)
    with pytest.warns(UserWarning, match=r"the optimizer gets layers.0.kernel.*LoRAParam"):
        nnx.Optimizer(model, grow, wrt=nnx.Param)


@pytest.mark.parametrize("model", [{"w": jnp.ones((4, 4))}, [jnp.ones((4, 4))]])
def test_a_tree_without_pairs_is_refused(model):
    with pytest.raises(il.InputError, match=r"is no NNX module.*pairs=il\.Pairs.*il\.prepare"):
        il.growth(model, steps=STEPS)


def test_a_score_of_a_dense_gradient_is_refused():
    growth = il.GrowthConfig(importance="gradient_norm")
    with pytest.raises(il.InputError, match="gradient_norm reads a dense gradient"):
        il.growth(Net(), steps=STEPS, growth=growth)
    with pytest.raises(il.InputError, match="given reads a dense gradient"):
        il.growth(Net(), steps=STEPS, importance=IMPORTANCE_FUNCTIONS["sensitivity"])


def test_misuses_are_named():
    model = Net()
    transformation = il.growth(model, steps=STEPS, growth=GROWTH, targets="layers.*")
    only = nnx.state(model, nnx.All(nnx.LoRAParam, nnx.PathContains("A")))
    with pytest.raises(il.InputError, match=r"does not get layers\.0\.adapter\.B"):
        transformation.init(only)
    with pytest.raises(il.InputError, match=r"no transformation of il\.growth inside"):
        il.ranks_of(nnx.Optimizer(model, optax.sgd(1.0), wrt=nnx.LoRAParam))
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.LoRAParam)
    with pytest.raises(il.InputError, match="Give the model that"):
        il.settle(Net(), optimizer)
    params = nnx.state(model, nnx.LoRAParam)
    with pytest.raises(ValueError, match="growth needs the parameters"):
        transformation.update(params, transformation.init(params))


def said(recwarn):
    return [w for w in recwarn if "no rank grows" in str(w.message)]


def test_a_plain_optimizer_over_a_model_that_could_grow_is_said(recwarn):
    model = il.attach(Net(), max_rank=4)
    model(data(0)[0])
    assert not said(recwarn)  # evaluation
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.LoRAParam)
    step, _ = host(model, optimizer)
    step(model, optimizer, *data(0))
    assert said(recwarn)


@pytest.mark.parametrize("way", ["growth", "trainer", "full rank"])
def test_a_model_whose_ranks_are_as_they_should_be_is_not_warned_of(way, recwarn):
    if way == "trainer":
        model = Net()
        method = il.increlora(model, steps=STEPS, growth=GROWTH)
        trainer, state, base = il.prepare(model, method, CONFIG, total_steps=STEPS)
        trainer.value_and_grad(loss_of)(state, base, *data(0))
    elif way == "growth":
        model, optimizer = grown()
        host(model, optimizer)[0](model, optimizer, *data(0))
    else:
        model = il.attach(Net(), "layers.*", max_rank=4, initial_rank=4)
        nnx.grad(loss_of, argnums=nnx.DiffState(0, nnx.LoRAParam))(model, *data(0))
    assert not said(recwarn)

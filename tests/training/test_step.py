import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from increlora_jax.config import VARIABLE, AdapterConfig, GrowthConfig, RunConfig
from increlora_jax.core.adapter import effective_update
from increlora_jax.core.regularizer import mean_orthogonality
from increlora_jax.errors import InputError
from increlora_jax.methods.head import head
from increlora_jax.methods.increlora import increlora
from increlora_jax.training.together import join, pick
from tests.tiny import (
    CLASSES,
    FEATURES,
    MLP,
    WIDTH,
    assert_same,
    batch_of,
    cross_entropy,
    run,
    start,
    trains_head,
)

STEPS, LAYERS, ALPHA, GAMMA, CLIP = 12, 3, 16.0, 5.0, 1e-3
MODULES = [f"layers.{i}" for i in range(LAYERS)]


def begin(
    dtype=jnp.float32, loss=cross_entropy, lora_dropout=0.0, growth=None, alpha=ALPHA, **training
):
    """Three modules that grow from 1 to 2 ranks, one a round, at steps 2, 4 and 6.

    Regularizer and clip are so strong that they would show wherever they had no business.
    """
    model = MLP(dtype, LAYERS)
    method = increlora(
        model,
        steps=STEPS,
        targets=r"layers\.\d",
        adapter=AdapterConfig(lora_alpha=alpha, lora_dropout=lora_dropout),
        growth=GrowthConfig(
            target_rank=2,
            top_h=1,
            init_warmup=1,
            incre_interval=2,
            **({"reg_orth_coef": GAMMA} | (growth or {})),
        ),
        is_trained=trains_head,
        dtype=dtype,
    )
    training = {"max_grad_norm": CLIP} | training
    return start(method, steps=STEPS, dtype=dtype, loss=loss, model=model, **training)


@pytest.fixture
def float64():
    """Compute in double precision, where two ways to the same number can be told from a bug."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def single():
    """A run in float32, compiled once for all tests."""
    return begin()


@pytest.fixture(scope="module")
def double():
    """The same in float64."""
    with jax.enable_x64(True):
        return begin(jnp.float64)


@pytest.fixture(scope="module")
def double_in_quarters():
    """The same in float64, four micro-batches a step."""
    with jax.enable_x64(True):
        return begin(jnp.float64, gradient_accumulation_steps=4)


def uneven_batch(seed):
    """Sixteen rows whose four quarters weigh 4, 1, 2.5 and nothing."""
    weight = [1, 1, 1, 1, 0, 0, 1, 0, 0.5, 1, 0.25, 0.75, 0, 0, 0, 0]
    return batch_of(16, seed, np.float64) | {"weight": np.array(weight)}


def in_quarters(seed):
    return {name: leaf.reshape(4, 4, *leaf.shape[1:]) for name, leaf in uneven_batch(seed).items()}


def assert_close(got, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, expected)


def assert_same_runs(got, expected):
    for (state, info), (other, same) in zip(expected, got, strict=True):
        # Sums in another order, and Adam's 1/√v on top of them: a few digits of sixteen.
        assert_close(same, info, rtol=1e-9, atol=1e-14)
        assert_same(other.slots, state.slots)
        assert_close(other.params, state.params, rtol=1e-7, atol=1e-12)


def test_micro_batches_add_up_to_the_whole_batch(float64, double, double_in_quarters):
    whole = run(double, 6, uneven_batch)
    assert_same_runs(run(double_in_quarters, 6, in_quarters), whole)
    assert whole[-1][0].total_rank == LAYERS + 2


def test_micro_batches_add_up_for_evidence_by_slot_too(float64):
    growth = {"importance": "lambda_gradient"}
    whole = run(begin(jnp.float64, growth=growth), 4, uneven_batch)
    quarters = begin(jnp.float64, growth=growth, gradient_accumulation_steps=4)
    assert_same_runs(run(quarters, 4, in_quarters), whole)


def test_rows_of_no_weight_do_not_count(float64, double):
    batch = uneven_batch(0)
    nonsense = batch | {"x": np.where(batch["weight"][:, None] > 0, batch["x"], 99.0)}
    expected = double.step(double.state, double.parts.base, batch, is_scored=True)
    got = double.step(double.state, double.parts.base, nonsense, is_scored=True)
    assert_same(got[0].slots, expected[0].slots)
    assert_close(got[1], expected[1], rtol=1e-12, atol=1e-16)


def kernels_of(begun, state, adapters):
    """The dense kernel of every module, and the update in it."""
    scaling = AdapterConfig(lora_alpha=ALPHA).scaling_rule(2)
    deltas = {n: effective_update(adapters[n], state.slots[n], scaling).delta for n in MODULES}
    return {n: begun.parts.base[f"{n}.kernel"] + deltas[n] for n in MODULES}, deltas


def dense_loss(kernels, head, begun, batch):
    """The task loss of the same model written out, its kernels given."""
    x = batch["x"]
    for name in MODULES:
        x = jnp.tanh(x @ kernels[name] + begun.parts.base[f"{name}.bias"])
    logits = x @ head["head.kernel"] + head["head.bias"]
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][:, None], axis=1)[:, 0]
    return -jnp.average(picked, weights=batch["weight"])


@pytest.mark.parametrize(
    ("name", "batches"), [("double", uneven_batch), ("double_in_quarters", in_quarters)]
)
def test_score_is_that_of_the_task_loss_alone_before_clipping(float64, request, name, batches):
    begun = request.getfixturevalue(name)
    state = run(begun, 4, batches)[-1][0]  # after a round, with a reserve that takes part
    _, info = begun.step(state, begun.parts.base, batches(4), is_scored=True)
    kernels, deltas = kernels_of(begun, state, state.params.adapter)
    loss, G = jax.value_and_grad(dense_loss)(kernels, state.params.head, begun, uneven_batch(4))
    expected = [np.abs(deltas[n] * G[n]).sum() / np.sqrt(G[n].size) for n in MODULES]
    np.testing.assert_allclose(info["loss"], loss, rtol=1e-12)
    np.testing.assert_allclose(info["importance"], expected, rtol=1e-10)


@pytest.mark.parametrize("is_ahead", [True, False])
def test_norm_is_of_all_that_learns_regularizer_included_before_the_clip(float64, double, is_ahead):
    # Without advance learning the regularizer pulls at a reserve that may not learn yet.
    begun = double if is_ahead else begin(jnp.float64, growth={"advance_learn": False})
    state = run(begun, 4, uneven_batch)[-1][0]
    _, info = begun.step(state, begun.parts.base, uneven_batch(4), is_scored=True)

    def total(params):
        kernels, _ = kernels_of(begun, state, params.adapter)
        orth = mean_orthogonality(params.adapter, state.slots)
        return dense_loss(kernels, params.head, begun, uneven_batch(4)) + GAMMA * orth

    gradient = jax.grad(total)(state.params)
    squares = [jnp.sum(jnp.square(leaf)) for leaf in gradient.head.values()]
    for name in MODULES:
        slots, (A, lam, B) = state.slots[name], gradient.adapter[name]
        has_matrices, has_lambda = slots.matrix_born <= 4, slots.lambda_born <= 4
        squares += [jnp.sum(jnp.square(A[:, has_matrices])), jnp.sum(jnp.square(B[has_matrices]))]
        squares += [jnp.sum(jnp.square(lam[has_lambda]))]
    np.testing.assert_allclose(info["grad_norm"], jnp.sqrt(sum(squares)), rtol=1e-10)
    assert info["grad_norm"] > 100 * CLIP


def test_scoring_changes_nothing_but_what_is_known(float64, double):
    batch = uneven_batch(0)
    scored, info = double.step(double.state, double.parts.base, batch, is_scored=True)
    unscored, less = double.step(double.state, double.parts.base, batch, is_scored=False)
    assert info.keys() - less.keys() == {"importance", "sensitivity", "uncertainty"}
    assert_same(unscored.slots, scored.slots)
    for name in ("params", "opt_state"):
        assert_close(getattr(unscored, name), getattr(scored, name), rtol=1e-12, atol=1e-16)


def test_rate_told_is_that_of_the_run(float64, double):
    rates = [float(info["learning_rate"]) for _, info in run(double, 4, uneven_batch)]
    # 0.02 after two steps of warmup, then down to 0 at step 12.
    np.testing.assert_allclose(rates, [0, 0.01, 0.02, 0.018], rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_counted_and_changes_nothing_else(single, bad):
    state, _ = run(single, 4)[-1]
    batch = batch_of()
    batch["x"][3, 2] = bad
    after, info = single.step(state, single.parts.base, batch, is_scored=True)
    assert not info["is_finite"]
    assert_same(after, state._replace(skipped=state.skipped + 1))
    assert info["total_rank"] == state.total_rank


def test_a_gradient_that_is_not_finite_counts_as_well():
    def loss(model, batch):
        total, weight = cross_entropy(model, batch)
        # √ has no slope at 0, where the bias starts: a finite loss of gradient NaN.
        return total + jnp.sqrt(jnp.sum(jnp.square(model.head.bias[...]))), weight

    begun = begin(loss=loss)
    after, info = begun.step(begun.state, begun.parts.base, batch_of(), is_scored=False)
    assert np.isfinite(info["loss"])
    assert not info["is_finite"]
    assert_same(after, begun.state._replace(skipped=begun.state.skipped + 1))


def test_a_score_that_is_not_finite_counts_as_well(single):
    state, _ = run(single, 4)[-1]
    broken = state.method._replace(sensitivity=state.method.sensitivity.at[0].set(np.inf))
    after, info = single.step(
        state._replace(method=broken), single.parts.base, batch_of(), is_scored=True
    )
    assert np.isfinite(info["loss"])
    assert np.isfinite(info["grad_norm"])
    assert not info["is_finite"]
    assert_same(after.params, state.params)


def test_a_skipped_batch_might_as_well_not_have_been_there(single):
    """Ages, warmups and rounds count the steps that were taken, not the batches that were seen."""
    expected = [single.state]
    for _ in range(6):
        expected.append(single.step(expected[-1], single.parts.base, batch_of(), is_scored=True)[0])
    bad = batch_of()
    bad["x"][0, 0] = np.nan
    state = single.state
    for batch in (batch_of(), bad, batch_of(), batch_of(), bad, bad, batch_of(), batch_of()):
        state, _ = single.step(state, single.parts.base, batch, is_scored=True)
    assert state.skipped == 3
    assert_same(state._replace(skipped=single.state.skipped), expected[5])


def test_growth_adds_no_program():
    traces = []

    def loss(model, batch):
        traces.append(1)  # runs only while JAX traces
        return cross_entropy(model, batch)

    begun = begin(loss=loss)
    history = run(begun, 7)
    totals = [int(state.total_rank) - LAYERS for state, _ in history]
    assert totals == [0, 0, 1, 1, 2, 2, 3]
    assert len(traces) == begun.step._cache_size() == 1


def test_base_weights_are_arguments_and_not_constants(single):
    arguments = single.state, single.parts.base, batch_of()
    text = single.step.lower(*arguments, is_scored=True).as_text()
    sizes = [
        int(np.prod([int(n) for n in shape.split("x")[:-1]]))
        for shape in re.findall(r'constant dense<(?:"|\[).*?> : tensor<(.*?)>', text)
    ]
    assert max(sizes, default=0) <= WIDTH  # the smallest kernel has 6 · 8
    doubled = {name: 2 * value for name, value in single.parts.base.items()}
    before = single.step._cache_size()
    _, info = single.step(*arguments, is_scored=True)
    _, other = single.step(single.state, doubled, batch_of(), is_scored=True)
    assert info["loss"] != other["loss"]
    assert single.step._cache_size() == max(before, 1)


def test_base_weights_are_not_in_the_optimizer(single):
    trained = sum(leaf.size for leaf in jax.tree.leaves(single.state.params))
    moments = [leaf for leaf in jax.tree.leaves(single.state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * trained


def test_vmap_over_states_trains_each_as_alone(float64):
    begun = begin(jnp.float64, growth={"importance": "random"})
    states = [begun.trainer.init(begun.parts, seed) for seed in range(4)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    @jax.jit
    def step_all(states, batch):
        def step(state):
            return begun.trainer.step(state, begun.parts.base, batch, is_scored=True)

        return jax.vmap(step)(states)

    for t in range(5):
        together, _ = step_all(together, uneven_batch(t))
    ranks = set()
    for index, state in enumerate(states):
        last = run(begun._replace(state=state), 5, uneven_batch)[-1][0]
        own = jax.tree.map(lambda leaf, i=index: leaf[i], together)
        assert_same(own.slots, last.slots)
        # Batched products sum in another order.
        assert_close(own.params, last.params, rtol=1e-7, atol=1e-12)
        ranks.add(tuple(int(last.slots[name].rank) for name in MODULES))
    assert len(ranks) > 1  # they are runs of their own


def test_a_donated_state_trains_alike_and_leaves_model_and_base_alone(single):
    expected = run(single, 3)[-1][0]
    donating = jax.jit(single.trainer.step, static_argnames="is_scored", donate_argnames="state")
    state = single.trainer.init(single.parts, seed=0)
    first = state.params
    for t in range(3):
        state, _ = donating(state, single.parts.base, batch_of(seed=t), is_scored=True)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(single.parts))
    assert_same(state.slots, expected.slots)
    # Another program may fuse, hence round, otherwise: float32 through Adam's 1/√v.
    assert_close(state.params, expected.params, rtol=1e-4, atol=1e-6)


def dropped_ones(model, batch):
    """A loss that shows how many of a thousand ones a dropout has kept, doubled."""
    kept = model.layers[0].adapter.dropout(jnp.ones(1000)).sum()
    return kept + 0.0 * model(batch["x"]).sum(), jnp.ones(())


def test_dropout_is_drawn_anew_at_every_step_from_the_runs_key():
    begun = begin(loss=dropped_ones, lora_dropout=0.5)
    losses = [float(info["loss"]) for _, info in run(begun, 5)]
    assert len(set(losses)) > 1
    assert losses == [float(info["loss"]) for _, info in run(begun, 5)]
    other = begun._replace(state=begun.trainer.init(begun.parts, seed=1))
    assert losses != [float(info["loss"]) for _, info in run(other, 5)]


def test_each_micro_batch_draws_a_dropout_of_its_own():
    begun = begin(loss=dropped_ones, lora_dropout=0.5, gradient_accumulation_steps=2)

    def twice(seed):
        return {name: np.stack([leaf] * 2) for name, leaf in batch_of(seed=seed).items()}

    losses = [float(info["loss"]) for _, info in run(begun, 5, twice)]
    # The mean of two draws that are alike is a draw: an even number.
    assert any(loss % 2 == 1 for loss in losses)


def test_prediction_is_without_dropout():
    begun = begin(lora_dropout=0.5)
    stirred = jax.tree.map(lambda leaf: leaf + 0.3, begun.state.params)
    state, x = begun.state._replace(params=stirred), jnp.asarray(batch_of()["x"])
    got = begun.trainer.predict(state, begun.parts.base, lambda model: model(x))
    head = stirred.head
    kernels, _ = kernels_of(begun, state, stirred.adapter)
    for name in MODULES:
        x = jnp.tanh(x @ kernels[name] + begun.parts.base[f"{name}.bias"])
    expected = x @ head["head.kernel"] + head["head.bias"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)  # float32
    assert got.shape == (8, CLASSES)


def test_a_step_without_adapters_is_stock_adamw():
    begun = start(
        head(None, is_trained=trains_head), steps=STEPS, weight_decay=0.1, max_grad_norm=1e9
    )

    def loss(params, batch):
        model = MLP()
        model.head.kernel[...], model.head.bias[...] = params["head.kernel"], params["head.bias"]
        total, weight = cross_entropy(model, batch)
        return total / weight

    def rate(count):
        return 0.02 * jnp.where(count < 2, count / 2, (STEPS - count) / (STEPS - 2))

    optimizer = optax.adamw(rate, weight_decay=0.1)
    params = begun.parts.head
    state = optimizer.init(params)
    for t, (got, info) in enumerate(run(begun, 4)):
        value, gradient = jax.value_and_grad(loss)(params, batch_of(seed=t))
        np.testing.assert_allclose(info["loss"], value, rtol=1e-5)  # float32
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        for name, expected in params.items():
            # float32, and Adam's division by small √v.
            np.testing.assert_allclose(got.params.head[name], expected, rtol=1e-4, atol=1e-5)
    assert info.keys() == {
        "loss", "orth_loss", "grad_norm", "is_finite", "total_rank", "learning_rate"
    }  # fmt: skip


def test_state_counts_its_ranks_and_steps(single):
    history = run(single, 3)
    assert [int(state.step) for state, _ in history] == [1, 2, 3]
    assert int(single.state.total_rank) == LAYERS
    assert int(history[-1][0].total_rank) == LAYERS + 1
    assert single.parts.base["layers.0.kernel"].shape == (FEATURES, WIDTH)


VARIANTS = [
    {"learning_rate": 0.05, "weight_decay": 0.1, "adam_beta1": 0.5, "lora_alpha": 4.0},
    {"warmup_steps": 4, "max_grad_norm": 0.5, "adam_epsilon": 1e-2, "adam_beta2": 0.9},
    {"reg_orth_coef": 0.5, "beta1": 0.3, "beta2": 0.6, "lora_alpha": 2.0},
    {"lora_plus_ratio": 4.0, "lambda_lr_ratio": 2.0},
]
"""Together they vary all there is to vary."""


def begin_alone(changes):
    """A run whose configuration has the changed settings."""
    changes = dict(changes)
    alpha = changes.pop("lora_alpha", ALPHA)
    growth = {n: changes.pop(n) for n in ("reg_orth_coef", "beta1", "beta2") if n in changes}
    return begin(jnp.float64, growth=growth, alpha=alpha, **changes)


def test_states_with_settings_of_their_own_train_together_as_they_do_alone(float64, double):
    assert set().union(*VARIANTS) == set(VARIABLE)
    alone = [begin_alone(changes) for changes in VARIANTS]
    flat = {**RunConfig().flat(), "learning_rate": 0.02, "warmup_steps": 2, "lora_alpha": ALPHA}
    flat |= {"max_grad_norm": CLIP, "reg_orth_coef": GAMMA}
    settings = [{name: changes.get(name, flat[name]) for name in VARIABLE} for changes in VARIANTS]
    init = partial(double.trainer.init, double.parts, 0)
    state = join([init(own) for own in settings])
    step = jax.jit(jax.vmap(partial(double.trainer.step, is_scored=True), in_axes=(0, None, 0)))
    expected = [run(begun, 6, uneven_batch) for begun in alone]
    for at in range(6):
        batch = jax.tree.map(lambda leaf: np.stack([leaf] * len(VARIANTS)), uneven_batch(at))
        state, info = step(state, double.parts.base, batch)
        for index, history in enumerate(expected):
            own, told = history[at]
            assert_close({n: v[index] for n, v in info.items()}, told, rtol=1e-9, atol=1e-14)
            assert_same(pick(state, index).slots, own.slots)
            assert_close(pick(state, index).params, own.params, rtol=1e-7, atol=1e-12)
    merged = double.trainer.merge(pick(state, 0), double.parts.base)
    kernels = alone[0].trainer.merge(expected[0][-1][0], alone[0].parts.base)
    assert_close(nnx.state(merged), nnx.state(kernels), rtol=1e-7, atol=1e-12)


def test_a_setting_that_cannot_vary_is_named(single):
    with pytest.raises(InputError, match=r"top_h cannot differ .* learning_rate"):
        single.trainer.init(single.parts, 0, {"top_h": 2})

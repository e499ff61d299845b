"""Growth of the LoRA that other libraries put into a model: pairs of matrices without a λ."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import qwix
from flax import nnx

import increlora_jax as il
from increlora_jax.interop.pairs import find_pairs
from tests.interop.test_growth import ADAPTER, CONFIG, GROWTH, STEPS, Net, data, host

SLOTS, SCALE = 6, 2.0
OWN = {"steps": STEPS, "adapter": ADAPTER, "growth": GROWTH, "pairs": il.Pairs(SCALE)}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def draw_params(dtype=jnp.float32, slots=SLOTS):
    """Draw a tree as Linen has it, with pairs as gemma's."""
    keys = jax.random.split(jax.random.key(0), 7)
    layers = {
        f"layer_{i}": {
            "kernel": jax.random.normal(keys[i], (6, 6), dtype) / 2,
            "lora": {
                "a": jax.random.normal(keys[i + 3], (6, slots), dtype) / 4,
                "b": jnp.zeros((slots, 6), dtype),
            },
        }
        for i in range(3)
    }
    return {**layers, "out": {"kernel": jax.random.normal(keys[6], (6, 2), dtype)}}


def forward(params, x):
    for i in range(3):
        own = params[f"layer_{i}"]
        x = jnp.tanh(x @ own["kernel"] + SCALE * x @ own["lora"]["a"] @ own["lora"]["b"])
    return x @ params["out"]["kernel"]


def loss_of_params(params, x, y):
    return jnp.mean((forward(params, x) - y) ** 2)


def is_lora(params):
    return jax.tree_util.tree_map_with_path(lambda keys, _: "lora" in str(keys), params)


def only_lora(transformation):
    """Train pairs alone, as `kd.optim.partial_updates(transformation, mask=is_lora)` does."""
    labels = lambda params: jax.tree.map(lambda m: "train" if m else "freeze", is_lora(params))  # noqa: E731
    return optax.multi_transform({"train": transformation, "freeze": optax.set_to_zero()}, labels)


def make_step(optimizer, traces):
    @jax.jit
    def step(params, state, x, y):
        traces.append(1)
        loss, gradients = jax.value_and_grad(loss_of_params)(params, x, y)
        updates, state = optimizer.update(gradients, state, params)
        return loss, optax.apply_updates(params, updates), state

    return step


def test_pairs_grow_as_the_trainers_adapters(float64):
    """The trainer of the same dense matrices, from the same A and B: ranks and losses are equal."""
    params, traces = draw_params(jnp.float64), []
    optimizer = only_lora(il.growth(params, config=CONFIG, dtype=jnp.float64, **OWN))
    state, step = optimizer.init(params), make_step(optimizer, traces)
    dense = {f"layer_{i}": params[f"layer_{i}"]["kernel"] for i in range(3)}
    growth = replace(GROWTH, max_rank=str(SLOTS))
    method = il.increlora(dense, steps=STEPS, adapter=ADAPTER, growth=growth, dtype=jnp.float64)
    trainer, theirs, base = il.prepare(
        dense, method, CONFIG, total_steps=STEPS, dtype=jnp.float64
    )  # fmt: skip
    begun = {
        name: own._replace(A=params[name]["lora"]["a"])
        for name, own in theirs.params.adapter.items()
    }
    theirs = theirs._replace(params=theirs.params._replace(adapter=begun))

    def whole_loss(tree, x, y):
        for i in range(3):
            x = jnp.tanh(x @ tree[f"layer_{i}"])
        return jnp.mean((x @ params["out"]["kernel"] - y) ** 2)

    @jax.jit
    def their_step(state, x, y):
        value, gradients = trainer.value_and_grad(whole_loss)(state, base, x, y)
        return value, *trainer.update(state, gradients)

    frozen = params
    for t in range(STEPS):
        batch = data(t, dtype=jnp.float64)
        wanted, theirs, info = their_step(theirs, *batch)
        got, params, state = step(params, state, *batch)
        np.testing.assert_allclose(got, wanted, rtol=1e-9)
        assert list(il.ranks_of(state).values()) == list(info["rank"])
    assert sum(il.ranks_of(state).values()) == 9
    assert len(traces) == 1
    for i in range(3):
        now, then = params[f"layer_{i}"]["kernel"], frozen[f"layer_{i}"]["kernel"]
        np.testing.assert_array_equal(now, then)
    settled = il.settle(params, state)
    merged = trainer.merge(theirs, base)
    for i in range(3):
        own, name = settled[f"layer_{i}"], f"layer_{i}"
        product = own["kernel"] + SCALE * own["lora"]["a"] @ own["lora"]["b"]
        np.testing.assert_allclose(product, merged[name], rtol=1e-8, atol=1e-10)
        rank = int(jnp.any(own["lora"]["b"] != 0, 1).sum())
        assert rank == il.ranks_of(state)[name]


def with_qwix(rank=SLOTS):
    model = Net()
    rule = qwix.LoraProvider(module_path="layers/.*", rank=rank, alpha=SCALE * rank)
    return qwix.apply_lora_to_model(model, rule, data(0)[0], rngs=nnx.Rngs(1))


def test_a_model_of_qwix_grows_in_its_own_optimizer():
    model = with_qwix()
    grow = il.growth(model, optax.adamw(0.03), **OWN)
    optimizer = nnx.Optimizer(model, grow, wrt=nnx.LoRAParam)
    others = nnx.filterlib.Not(nnx.LoRAParam)
    before = jax.tree.map(jnp.copy, nnx.state(model, others))
    step, traces = host(model, optimizer)
    losses = [float(step(model, optimizer, *data(t))) for t in range(STEPS)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert len(traces) == 1
    ranks = il.ranks_of(optimizer)
    assert list(ranks) == [f"layers.{i}.kernel" for i in range(3)]
    assert sum(ranks.values()) == 9
    assert jax.tree.all(jax.tree.map(np.array_equal, before, nnx.state(model, others)))
    x, _ = data(99)
    shown = model(x)
    assert il.settle(model, optimizer) is model
    np.testing.assert_allclose(model(x), shown, rtol=1e-6)
    for i, rank in enumerate(ranks.values()):
        assert jnp.any(model.layers[i].kernel_lora_b[...] != 0, 1).sum() == rank


def test_micro_batches_grow_pairs_as_one_batch():
    def run(wrap, parts):
        params = draw_params()
        optimizer = wrap(only_lora(il.growth(params, config=CONFIG, **OWN)))
        state, step = optimizer.init(params), make_step(optimizer, [])
        for t in range(STEPS):
            x, y = data(t, rows=32)
            for part in zip(jnp.split(x, parts), jnp.split(y, parts), strict=True):
                _, params, state = step(params, state, *part)
        return params, il.ranks_of(state)

    params, ranks = run(lambda t: optax.MultiSteps(t, 4), 4)
    whole, wanted = run(lambda t: t, 1)
    assert ranks == wanted
    x, _ = data(99)
    np.testing.assert_allclose(forward(params, x), forward(whole, x), rtol=1e-3, atol=1e-4)


def test_pairs_in_bfloat16_learn_by_steps_smaller_than_their_digits():
    """A, λ and B are float32: steps that bfloat16 would lose add up."""
    params = {"w": jnp.zeros((4, 4)), "w_lora_a": jnp.ones((4, 2)), "w_lora_b": jnp.zeros((2, 4))}
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    growth = replace(GROWTH, target_rank=1, reg_orth_coef=0.0, advance_learn=False)
    grow = il.growth(params, optax.sgd(1.0), **{**OWN, "growth": growth})
    state = grow.init(params)
    tiny = jax.tree.map(lambda p: jnp.full_like(p, 2.0**-12), params)
    for _ in range(32):
        updates, state = grow.update(tiny, state, params)
        params = optax.apply_updates(params, updates)
    learned = jnp.any(params["w_lora_a"] != 1, 0)
    assert learned.sum() == 1
    np.testing.assert_allclose(params["w_lora_a"][:, learned], 1 - 2.0**-7)


def test_a_stack_of_layers_has_a_rank_each():
    shape = {"q": {"lora": {"a": jnp.ones((3, 4, 2, 5)), "b": jnp.zeros((3, 5, 6))}}}
    (pair,) = find_pairs(shape, il.Pairs(1.0, stack=1)).values()
    assert (pair.stack, pair.inputs, pair.slots, pair.outputs) == ((3,), 8, 5, 6)
    grow = il.growth(shape, **OWN)
    assert il.ranks_of(grow.init(shape)) == {"q[0]": 1, "q[1]": 1, "q[2]": 1}


@pytest.mark.parametrize(
    ("params", "given", "message"),
    [
        ({"w": jnp.ones((4, 4))}, {}, "the model has no lora_a and lora_b"),
        ({"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}, {}, "the model has no lora_a"),
        (
            {"w_lora_a": jnp.ones((3, 4, 2)), "w_lora_b": jnp.ones((3, 2, 4))},
            {"pairs": il.Pairs(1.0, stack=0)},
            r"w has a \[3, 4, 2\] and b \[3, 2, 4\]: .* one with stack=1\. Give that",
        ),
        (
            {"w_lora_a": jnp.ones((2, 4, 2)), "w_lora_b": jnp.ones((2, 2, 4))}, {},
            r"w has a \[2, 4, 2\] and b \[2, 2, 4\]: .* one with stack=0 or 1\. Give that",
        ),
        (
            {"w_lora_a": jnp.ones((4, 2)), "w_lora_b": jnp.ones((3, 4))}, {},
            r"w has a \[4, 2\] and b \[3, 4\]: .* no pair",
        ),
        (
            {"v_lora_a": jnp.ones((4, 2)), "v_lora_b": jnp.ones((2, 4)),
             "w_lora_a": jnp.ones((4, 3)), "w_lora_b": jnp.ones((3, 4))}, {},
            "the pairs have ranks 2, 3",
        ),
        (
            {"w_lora_a": jnp.ones((3, 8)), "w_lora_b": jnp.ones((8, 5))}, {},
            "w has a pair of rank 8, more than its 3 × 5 matrix can have",
        ),
        (draw_params(), {"growth": replace(GROWTH, max_rank="9")}, "max_rank=9.*have 6 slots"),
        (
            draw_params(),
            {"is_scored_by_host": True, "growth": replace(GROWTH, importance="sensitivity")},
            "is_scored_by_host is for adapters of il.growth",
        ),
    ],
)  # fmt: skip
def test_what_cannot_grow_is_named(params, given, message):
    with pytest.raises(il.InputError, match=message):
        il.growth(params, **{**OWN, **given})


def test_a_model_with_pairs_asks_how_they_are_applied():
    with pytest.raises(il.InputError, match=r"layers.0.kernel has LoRA.*pairs=il.Pairs\(scale="):
        il.growth(with_qwix(), steps=STEPS, growth=GROWTH)


def test_an_optimizer_without_a_pair_is_named():
    params = draw_params()
    grow = il.growth(params, **OWN)
    del params["layer_1"]["lora"]["b"]
    with pytest.raises(il.InputError, match=r"does not get layer_1\.lora\.b"):
        grow.init(params)


def test_settling_another_model_is_refused():
    params = draw_params()
    state = il.growth(params, **OWN).init(params)
    with pytest.raises(il.InputError, match="neither adapters nor pairs there"):
        il.settle(Net(), state)


def test_one_transformation_begins_several_optimizers_whose_buffers_are_donated():
    params = draw_params()
    grow = only_lora(il.growth(params, config=CONFIG, **OWN))

    def end():
        step = jax.jit(make_step(grow, []), donate_argnums=(0, 1))
        own, state = jax.tree.map(jnp.copy, params), grow.init(params)
        for t in range(3):
            _, own, state = step(own, state, *data(t))
        return own

    jax.tree.map(np.testing.assert_array_equal, end(), end())


def test_other_parameters_that_the_optimizer_gets_learn_in_full():
    params = draw_params()
    adapter = replace(ADAPTER, target_modules=["layer_0", "layer_1"])
    grow = il.growth(params, optax.adamw(0.03), **{**OWN, "adapter": adapter})
    state, step = grow.init(params), make_step(grow, [])
    before = params
    losses = []
    for t in range(STEPS):
        loss, params, state = step(params, state, *data(t))
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert list(il.ranks_of(state)) == ["layer_0", "layer_1"]
    for path in (("out", "kernel"), ("layer_2", "lora", "b")):
        now, then = params, before
        for key in path:
            now, then = now[key], then[key]
        assert not np.array_equal(now, then)


def test_a_lora_that_has_learned_is_warned_of():
    params = draw_params()
    params["layer_1"]["lora"]["b"] += 1
    with pytest.warns(UserWarning, match="layer_1 has learned already, and b is set to 0"):
        il.growth(params, **OWN)

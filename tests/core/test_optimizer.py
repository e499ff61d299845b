from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from increlora_jax.core.adapter import NEVER, Adapter
from increlora_jax.core.optimizer import (
    RateRatios,
    Trainable,
    births,
    build_optimizer,
    clip_by_global_norm,
    mask_unborn,
    slot_adamw,
)
from increlora_jax.core.schedule import rate_at

ADAM = {"b1": 0.8, "b2": 0.95, "eps": 1e-6, "weight_decay": 0.3}
LR, WARMUP, TOTAL = 0.05, 3, 12
BORN = [0, 2, 5, NEVER]
IN, OUT, SLOTS = 3, 2, 4

rate = partial(rate_at, learning_rate=LR, warmup_steps=WARMUP, total_steps=TOTAL, dtype=jnp.float64)


@pytest.fixture
def params(float64, make_adapter):
    draw = np.random.default_rng(9)
    return Trainable(
        {"layer": make_adapter(IN, SLOTS, OUT)}, {"head": jnp.asarray(draw.normal(size=(2, 3)))}
    )


@pytest.fixture
def slots(make_slots):
    born = jnp.asarray(BORN, jnp.int32)
    # λ joins one step after its matrices, as with advance learning.
    later = jnp.where(born == 0, 0, jnp.where(born == NEVER, NEVER, born + 1))
    return {"layer": make_slots("aaad")._replace(lambda_born=later, matrix_born=born)}


def gradients_at(step, params):
    draw = np.random.default_rng(100 + step)
    return jax.tree.map(lambda p: jnp.asarray(draw.normal(size=p.shape)), params)


def trajectory(optimizer, params, slots, steps=TOTAL):
    """Parameters and optimizer state after each step."""
    state, born = optimizer.init(params), births(params, slots)
    for step in range(steps):
        updates, state = optimizer.update(
            gradients_at(step, params), state, params, step=jnp.asarray(step), born=born
        )
        params = optax.apply_updates(params, updates)
        yield params, state


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


class TorchRun:
    """torch.optim.AdamW over entries that join when they are born, clipped over all that have."""

    def __init__(self, torch, params, slots, max_grad_norm, ratios):
        self.torch = torch
        self.ratios = ratios  # of the rate, by leaf
        flat = jax.tree.leaves(params)
        born = jax.tree.map(jnp.broadcast_to, births(params, slots), _shapes(params))
        self.born = [np.asarray(b) for b in jax.tree.leaves(born)]
        # One parameter for the entries of a leaf that are born together.
        self.entries = [
            (leaf, birth, torch.nn.Parameter(torch.tensor(np.asarray(flat[leaf])[born == birth])))
            for leaf, born in enumerate(self.born)
            for birth in np.unique(born)
        ]
        self.max_grad_norm = max_grad_norm
        self.optimizer = None

    def step(self, step, gradients):
        flat = [np.asarray(g) for g in jax.tree.leaves(gradients)]
        alive = [entry for entry in self.entries if entry[1] <= step]
        for leaf, birth, parameter in alive:
            parameter.grad = self.torch.tensor(flat[leaf][self.born[leaf] == birth])
            if birth == step:
                self._join(parameter, birth, self.ratios[leaf])
        self.torch.nn.utils.clip_grad_norm_([p for _, _, p in alive], self.max_grad_norm)
        for group in self.optimizer.param_groups:
            age, horizon = step - group["birth"], TOTAL - group["birth"]
            factor = age / WARMUP if age < WARMUP else (horizon - age) / (horizon - WARMUP)
            group["lr"] = LR * factor * group["ratio"]
        self.optimizer.step()

    def _join(self, parameter, birth, ratio):
        group = {"params": [parameter], "birth": int(birth), "ratio": ratio}
        if self.optimizer is None:
            self.optimizer = self.torch.optim.AdamW(
                [group],
                betas=(ADAM["b1"], ADAM["b2"]),
                eps=ADAM["eps"],
                weight_decay=ADAM["weight_decay"],
            )
        else:
            self.optimizer.add_param_group(group)

    def values(self, leaf):
        out = np.zeros(self.born[leaf].shape)
        for at, birth, parameter in self.entries:
            if at == leaf:
                out[self.born[leaf] == birth] = parameter.detach().numpy()
        return out


def _shapes(params):
    return jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("max_grad_norm", [0.7, 1e9])
@pytest.mark.parametrize("ratios", [RateRatios(), RateRatios(lam=0.25, B=16.0)])
def test_every_entry_moves_as_under_torch_from_the_step_it_joins(
    torch, params, slots, max_grad_norm, ratios
):
    """A group of its own for every array and birth, as LoRA+ has one for B."""
    optimizer = build_optimizer(rate, max_grad_norm=max_grad_norm, ratios=ratios, **ADAM)
    by_leaf = [1.0, ratios.lam, ratios.B, 1.0]  # A, λ, B, and the head
    torch_run = TorchRun(torch, params, slots, max_grad_norm, by_leaf)
    born = births(params, slots)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(TOTAL):
        at = jnp.asarray(step)
        gradients = gradients_at(step, params)
        # As in the step: what is unborn has no part in the global norm.
        masked = mask_unborn(gradients, born, at)
        updates, state = update(masked, state, params, step=at, born=born)
        params = optax.apply_updates(params, updates)
        torch_run.step(step, gradients)
        for leaf, value in enumerate(jax.tree.leaves(params)):
            np.testing.assert_allclose(value, torch_run.values(leaf), rtol=1e-11, atol=1e-13)


def test_unborn_entries_have_no_moments_no_decay_and_no_motion(params, slots):
    optimizer = slot_adamw(rate, **ADAM)
    adapters = params.adapter
    born = births(params, slots).adapter
    state, first = optimizer.init(adapters), adapters["layer"]
    for step in range(6):
        updates, state = optimizer.update(
            gradients_at(step, adapters), state, adapters, step=jnp.asarray(step), born=born
        )
        adapters = optax.apply_updates(adapters, updates)
        now, lives = adapters["layer"], np.array(BORN) <= step
        for moment in (state.mu["layer"], state.nu["layer"]):
            assert list((moment.A != 0).all(axis=0)) == list(lives)
            assert list((moment.B != 0).all(axis=1)) == list(lives)
            assert not (moment.A != 0)[:, ~lives].any()
            assert not (moment.B != 0)[~lives].any()
        np.testing.assert_array_equal(now.A[:, ~lives], first.A[:, ~lives])
        np.testing.assert_array_equal(now.B[~lives], first.B[~lives])
        asleep = ~(np.asarray(slots["layer"].lambda_born) <= step)
        np.testing.assert_array_equal(now.lam[asleep], first.lam[asleep])
        assert not np.asarray(state.mu["layer"].lam)[asleep].any()


@pytest.mark.parametrize("asleep", [0, 4])
def test_an_entry_that_is_born_again_begins_anew(params, slots, asleep):
    """From its second birth on, a slot moves as one that never lived before."""
    optimizer, first_life, back = slot_adamw(rate, **ADAM), 3, 3 + asleep
    ages = {"old": 0, "gone": NEVER, "new": back}
    born = {
        name: jax.tree.map(lambda b, age=age: jnp.full_like(b, age), births(params, slots).adapter)
        for name, age in ages.items()
    }

    def run(lives):
        adapters = params.adapter
        state = optimizer.init(adapters)
        for step in range(TOTAL):
            life = "new" if step >= back else ("old" if lives and step < first_life else "gone")
            updates, state = optimizer.update(
                gradients_at(step, adapters), state, adapters, step=jnp.asarray(step),
                born=born[life],
            )  # fmt: skip
            if step >= back:
                adapters = optax.apply_updates(adapters, updates)
        return adapters, state

    jax.tree.map(np.testing.assert_array_equal, run(lives=True), run(lives=False))


def test_gradients_before_birth_leave_no_trace(params, slots):
    """The same run, whether or not unborn entries are fed anything, NaN included."""
    optimizer = slot_adamw(rate, **ADAM)
    born = births(params, slots).adapter

    def run(noise):
        adapters = params.adapter
        state = optimizer.init(adapters)
        for step in range(TOTAL):
            gradients = jax.tree.map(
                lambda g, b, step=step: jnp.where(step >= b, g, noise),
                gradients_at(step, adapters),
                born,
            )
            updates, state = optimizer.update(
                gradients, state, adapters, step=jnp.asarray(step), born=born
            )
            adapters = optax.apply_updates(adapters, updates)
        return adapters

    jax.tree.map(np.testing.assert_array_equal, run(0.0), run(jnp.nan))


def test_head_is_stock_adamw_of_the_runs_schedule(params, slots):
    optimizer = build_optimizer(rate, max_grad_norm=1e9, **ADAM)
    stock = optax.adamw(lambda count: rate(count, jnp.zeros((), jnp.int32)), **ADAM)
    expected, state = params.head, stock.init(params.head)
    for step, (got, _) in enumerate(trajectory(optimizer, params, slots)):
        updates, state = stock.update(gradients_at(step, params).head, state, expected)
        expected = optax.apply_updates(expected, updates)
        np.testing.assert_allclose(got.head["head"], expected["head"], rtol=1e-13)


def test_births_broadcast_against_their_leaves(params, slots):
    born = births(params, slots)
    jax.tree.map(lambda b, p: jnp.broadcast_to(b, p.shape), born, params)
    layer, own = born.adapter["layer"], slots["layer"]
    assert isinstance(layer, Adapter)
    assert layer.A[0].tolist() == layer.B[:, 0].tolist() == own.matrix_born.tolist()
    assert layer.lam.tolist() == own.lambda_born.tolist()
    assert born.head["head"] == 0


def test_births_of_stacked_layers_broadcast_too(make_adapter, make_slots):
    adapter = make_adapter(IN, SLOTS, OUT, stack=(5,))
    slots = make_slots(["arrd"] * 5)
    born = births(Trainable({"x": adapter}, {}), {"x": slots}).adapter["x"]
    masked = mask_unborn(jax.tree.map(jnp.ones_like, adapter), born, jnp.asarray(0))
    assert masked.A[:, 0].tolist() == [[1, 1, 1, 0]] * 5
    assert masked.B[:, :, 0].tolist() == [[1, 1, 1, 0]] * 5
    assert masked.lam.tolist() == [[1, 0, 0, 0]] * 5


@pytest.mark.parametrize("max_norm", [0.1, 2.0, 1e6])
def test_clip_is_that_of_pytorch(torch, params, max_norm):
    gradients = gradients_at(0, params)
    clipped, _ = clip_by_global_norm(max_norm).update(gradients, optax.EmptyState())
    parameters = [torch.nn.Parameter(torch.zeros(g.shape)) for g in jax.tree.leaves(gradients)]
    for parameter, gradient in zip(parameters, jax.tree.leaves(gradients), strict=True):
        parameter.data = parameter.data.double()
        parameter.grad = torch.tensor(np.asarray(gradient))
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    for parameter, got in zip(parameters, jax.tree.leaves(clipped), strict=True):
        np.testing.assert_allclose(got, parameter.grad.numpy(), rtol=1e-14)


def test_clip_keeps_each_leafs_precision():
    tree = {"narrow": jnp.ones(3, jnp.bfloat16), "wide": jnp.ones(3)}
    clipped, _ = clip_by_global_norm(0.1).update(tree, optax.EmptyState())
    assert {name: leaf.dtype.name for name, leaf in clipped.items()} == {
        "narrow": "bfloat16",
        "wide": "float32",
    }


@pytest.mark.parametrize("is_empty", ["adapter", "head"])
def test_either_half_may_be_empty(params, slots, is_empty):
    params = params._replace(**{is_empty: {}})
    *_, (last, _) = trajectory(build_optimizer(rate, max_grad_norm=1.0), params, slots)
    assert getattr(last, is_empty) == {}

"""Transformations of others over slots of different ages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from increlora_jax.core.adapter import NEVER, Adapter
from increlora_jax.core.named_optimizers import Betas, build_named_optimizer
from increlora_jax.core.optimizer import RateRatios, Trainable, births, slot_adamw
from increlora_jax.core.slotwise import find_kind, matrixwise, slotwise, whole
from increlora_jax.core.stacking import stack_dicts, unstack_dicts
from increlora_jax.errors import InputError
from tests.core.test_optimizer import gradients_at

IN, OUT, SLOTS, STEPS, LR = 3, 2, 4, 12, 0.05
BORN = [0, 2, 5, NEVER]
ADAM = {"b1": 0.8, "b2": 0.95, "eps": 1e-6, "weight_decay": 0.3}
OTHERS = {"lion": optax.lion(0.1), "momentum": optax.sgd(0.1, momentum=0.9),
          "adafactor": optax.adafactor(0.1), "muon": optax.contrib.muon(0.1),
          "lamb": optax.lamb(0.1)}  # fmt: skip


@pytest.fixture
def params(float64, make_adapter):
    head = jnp.asarray(np.random.default_rng(9).normal(size=(2, 3)))
    return Trainable({"layer": make_adapter(IN, SLOTS, OUT)}, {"head": head})


@pytest.fixture
def slots(make_slots):
    born = jnp.asarray(BORN, jnp.int32)
    later = jnp.where(born == 0, 0, jnp.where(born == NEVER, NEVER, born + 1))
    return {"layer": make_slots("aaad")._replace(lambda_born=later, matrix_born=born)}


def trajectory(optimizer, params, born, gradients=gradients_at, steps=range(STEPS)):
    """Give the parameters after each step."""
    state = optimizer.init(params)
    for step in steps:
        when = {"step": jnp.asarray(step), "born": born}
        updates, state = optimizer.update(gradients(step, params), state, params, **when)
        params = optax.apply_updates(params, updates)
        yield params


def assert_same(one, other, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **{"rtol": 1e-9, **tolerance}), one, other)


def test_optax_adamw_by_slots_is_the_adamw_of_slots(params, slots):
    born = births(params, slots)
    rate = lambda step, b: jnp.where(step >= b, LR, 0.0)  # noqa: E731
    ours, theirs = slot_adamw(rate, **ADAM), slotwise(optax.adamw(LR, **ADAM))
    pairs = zip(trajectory(ours, params, born), trajectory(theirs, params, born), strict=True)
    for own, other in pairs:
        assert_same(own.adapter, other.adapter)


def test_a_schedule_counts_from_birth(params, slots):
    born = births(params, slots)
    steps = list(trajectory(slotwise(optax.sgd(lambda count: 10.0**count)), params, born))
    zero = jax.tree.map(jnp.zeros_like, params.adapter["layer"])
    moved = [p.adapter["layer"].lam for p in (params, *steps)]
    for slot, birth in enumerate([0, 3, 6]):
        for step in range(STEPS):
            gradient = gradients_at(step, params).adapter["layer"].lam[slot]
            wanted = 0.0 if step < birth else -(10.0 ** (step - birth)) * gradient
            got = moved[step + 1][slot] - moved[step][slot]
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-12)
    assert np.array_equal(moved[-1][3], moved[0][3]), zero


@pytest.mark.parametrize("birth", [0, 4])
def test_a_slot_that_is_born_again_begins_anew(params, slots, birth):
    """A slot's path from its second birth on is that of a new slot with the same gradients."""
    optimizer = slotwise(optax.adam(LR))
    again = jax.tree.map(lambda b: jnp.full_like(b, birth), births(params, slots))
    state = optimizer.init(params)
    for step in range(birth):  # the first life, from birth 0
        first = jax.tree.map(jnp.zeros_like, again)
        when = {"step": jnp.asarray(step), "born": first}
        _, state = optimizer.update(gradients_at(step, params), state, params, **when)
    fresh = optimizer.init(params)
    for step in range(birth, birth + 3):
        when = {"step": jnp.asarray(step), "born": again}
        moved, state = optimizer.update(gradients_at(step, params), state, params, **when)
        wanted, fresh = optimizer.update(gradients_at(step, params), fresh, params, **when)
        assert_same(moved.adapter, wanted.adapter)


@pytest.mark.parametrize("name", ["adamw", "lion", "momentum"])
def test_optimizers_of_entries_are_found_by_what_they_do(name):
    assert find_kind({**OTHERS, "adamw": optax.adamw(0.1)}[name]) == "slotwise"
    two = optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()
    assert find_kind(two) == "slotwise"
    chain = optax.chain(optax.clip(0.5), optax.scale_by_adam(), optax.scale(-0.1))
    assert find_kind(chain) == "slotwise"
    assert find_kind(optax.chain(optax.clip_by_global_norm(1.0), slotwise(chain))) == "adapted"


@pytest.mark.parametrize("name", ["adafactor", "muon", "lamb", "clipped", "noisy"])
def test_optimizers_of_matrices_are_found_by_what_they_do(name):
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    noisy = optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(0)), optax.sgd(0.1))
    assert find_kind({**OTHERS, "clipped": clipped, "noisy": noisy}[name]) == "mixing"


WARMUP = optax.warmup_cosine_decay_schedule(0.0, 1e-4, 1000, 5000)
HIDDEN = {
    "a clip before a long warmup": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(WARMUP)),
    "a clip of large gradients": optax.chain(optax.clip_by_global_norm(200.0), optax.sgd(0.1)),
    "muon that begins late": optax.contrib.muon(lambda step: 0.1 * (step > 2)),
    "a rate for all": optax.contrib.prodigy(),
    "another rate for all": optax.contrib.dadapt_adamw(),
    "one that never moves": optax.sgd(0.0),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_mixing_that_shows_late_or_seldom_is_found(name):
    assert find_kind(HIDDEN[name]) == "mixing"


@pytest.mark.parametrize("optimizer", [optax.sm3(0.1), optax.lookahead(optax.sgd(0.1), 5, 0.5)])
def test_an_optimizer_that_cannot_be_tried_is_refused(optimizer):
    with pytest.raises(InputError, match="its updates cannot be tried"):
        find_kind(optimizer)


@pytest.mark.parametrize("name", OTHERS)
def test_a_whole_optimizer_sees_single_matrices_however_they_are_kept(float64, name):
    draw = np.random.default_rng(3)
    shapes = Adapter(A=(2, IN, SLOTS), lam=(2, SLOTS), B=(2, SLOTS, OUT))
    make = lambda: Adapter(*(jnp.asarray(draw.normal(size=s)) for s in shapes))  # noqa: E731
    params = Trainable({"a": make(), "b": make()}, {"head": jnp.ones((2, 3))})
    born = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.int32), params)
    split = {
        f"{n}{i}": jax.tree.map(lambda x, i=i: x[i], a)
        for n, a in params.adapter.items()
        for i in (0, 1)
    }
    alone, rule = params._replace(adapter=split), OTHERS[name]
    gradient = gradients_at(0, params)
    split_gradient = gradient._replace(adapter={
        f"{n}{i}": jax.tree.map(lambda x, i=i: x[i], a)
        for n, a in gradient.adapter.items()
        for i in (0, 1)
    })  # fmt: skip
    wanted, _ = rule.update(split_gradient, rule.init(alone), alone)

    keys = (("a", "b"),)
    grouped, own_gradient, own_born = stack_dicts(keys, (params, gradient, born))
    state = stack_dicts(keys, whole(rule).init(params))
    moved, state = whole(rule).update(
        own_gradient, state, grouped, step=jnp.asarray(0), born=own_born
    )
    moved = unstack_dicts(keys, moved)
    for module, own in moved.adapter.items():
        for i in (0, 1):
            layer = jax.tree.map(lambda x, i=i: x[i], own)
            assert_same(layer, wanted.adapter[f"{module}{i}"], atol=1e-12)
    assert_same(moved.head, wanted.head)


def test_a_whole_optimizer_leaves_unborn_slots_alone(params, slots):
    born = births(params, slots)
    *_, last = trajectory(whole(optax.adamw(LR, weight_decay=0.5)), params, born)
    assert np.array_equal(last.adapter["layer"].A[:, 3], params.adapter["layer"].A[:, 3])
    assert not np.array_equal(last.adapter["layer"].A[:, 0], params.adapter["layer"].A[:, 0])


def test_matrixwise_orthogonalizes_each_matrix_of_a_stack(float64):
    draw = np.random.default_rng(3)
    A = jnp.asarray(draw.normal(size=(5, 6, SLOTS)))
    params = Trainable(
        {"x": Adapter(A, jnp.ones((5, SLOTS)), jnp.ones((5, SLOTS, OUT)))}, optax.MaskedNode()
    )
    muon = optax.contrib.muon(0.1)
    moved, _ = matrixwise(muon).update(params, matrixwise(muon).init(params), params)
    for layer in range(5):
        wanted, _ = muon.update(A[layer], muon.init(A[layer]), A[layer])
        np.testing.assert_allclose(moved.adapter["x"].A[layer], wanted, rtol=1e-9)


@pytest.mark.parametrize("name", ["lion", "adafactor", "muon", "sgd"])
def test_a_module_born_later_moves_as_one_born_at_the_start(params, make_slots, name):
    """All slots of a module are born at step 4, beside the same module born at step 0."""
    rate = lambda step, b: jnp.where(step >= b, LR / (1.0 + step - b), 0.0)  # noqa: E731
    optimizer = build_named_optimizer(
        name, rate, max_grad_norm=1e9, ratios=RateRatios(3.0, 2.0),
        betas=Betas(0.8, 0.95, 1e-6), weight_decay=0.3,
    )  # fmt: skip
    alone = params._replace(head={})
    at = lambda birth: Trainable(  # noqa: E731
        jax.tree.map(lambda p: jnp.full((), birth), alone.adapter), {}
    )

    def late(step, params):
        gradients = gradients_at(step - 4, params)
        return jax.tree.map(lambda g: jnp.where(step >= 4, g, 0.0), gradients)

    early = list(trajectory(optimizer, alone, _shaped(alone, at(0)), steps=range(6)))
    later = list(trajectory(optimizer, alone, _shaped(alone, at(4)), late, steps=range(10)))
    assert_same(later[3], alone)
    # Muon corrects the bias of its momentum by the run's count.
    tolerance = {"rtol": 0.02, "atol": 5e-3} if name == "muon" else {"rtol": 1e-6, "atol": 1e-9}
    for own, other in zip(later[4:], early, strict=True):
        assert_same(own, other, **tolerance)


def _shaped(params, born):
    """Shape births as `births` does."""
    own = {
        name: Adapter(
            jnp.full((1, SLOTS), b.A), jnp.full((SLOTS,), b.lam), jnp.full((SLOTS, 1), b.B)
        )
        for name, b in born.adapter.items()
    }
    return born._replace(adapter=own)

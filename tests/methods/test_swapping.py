"""ElaLoRA and FlexLoRA beside loops over lists of slots, on given gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import increlora_jax as il
from increlora_jax.core.adapter import Adapter
from increlora_jax.core.stacking import Groups
from increlora_jax.errors import InputError
from tests.core.test_exchange import exchange_lists, exchange_module_lists

MODULES, STEPS, RANK = 6, 60, 3
CONFIG = {"tinit": 5, "tfinal": 15, "delta_t": 4, "swap_ranks": 3, "swap_depth": 2}
SCHEDULE = {"target_rank": RANK, "beta1": 0.85, "beta2": 0.7, "reg_orth_coef": 0.0}
WEIGHTS = {f"m{i}": jnp.ones((7, 9)) for i in range(MODULES)}


@pytest.fixture
def float64():
    """Compute in double precision."""
    with jax.enable_x64(True):
        yield


def build(make, weights=WEIGHTS, steps=STEPS, growth=None, **config):
    return make(
        weights,
        steps=steps,
        config=il.PruningConfig(**(CONFIG | config)),
        growth=il.GrowthConfig(**(SCHEDULE | (growth or {}))),
        dtype=jnp.result_type(float),
    )


def observe(method, observe_step):
    """Call `observe_step` after each update on drawn gradients and moves."""
    _, parts = il.split(method.attach(WEIGHTS, None), lambda path: False)
    groups = Groups(parts.adapters)
    adapters, slots, state = groups.stack((parts.adapters, parts.slots, method.init(parts)))
    settings = {**method.settings, "total_steps": STEPS, "reg_orth_coef": 0.0}
    update, draw = jax.jit(method.update), np.random.default_rng(5)

    def random(like, size):
        return jax.tree.map(lambda x: jnp.asarray(size * draw.normal(size=x.shape)), like)

    for step in range(STEPS):
        gradients, moves = random(adapters, 1.0), random(adapters, 0.3)
        moved = jax.tree.map(jnp.add, adapters, moves)
        seen = il.Observation(
            jnp.asarray(step), jax.random.key(step), adapters, moved, slots, state, gradients, None,
            settings,
        )  # fmt: skip
        result = update(seen)
        taken = [groups.unstack(tree) for tree in (moved, gradients, slots, result.slots)]
        observe_step(step, *taken, groups.unstack(result.adapters))
        adapters, slots, state = result.adapters, result.slots, result.state


def is_round(step):
    return step > 5 and (step - 5) % 4 == 0 and step < 45


def count(step):
    return round(3 * (1 - ((step - 5) / 40) ** 3))


def masks_after(before, leaving, granted):
    """The active slots of every module: opened are the first that were dormant before."""
    after = before.copy()
    for module, number in enumerate(granted):
        after[module, np.flatnonzero(~before[module])[:number]] = True
    for place in leaving:
        after[place] = False
    return after


class Averages:
    """Ī and Ū of every entry of a module, in loops."""

    def __init__(self):
        self.mean, self.apart = {}, {}

    def move(self, module, moved, gradient):
        for name in Adapter._fields:
            raw = np.abs(np.asarray(getattr(moved, name)) * np.asarray(getattr(gradient, name)))
            mean = 0.85 * self.mean.get((module, name), 0) + (1 - 0.85) * raw
            self.mean[module, name] = mean
            apart = 0.7 * self.apart.get((module, name), 0) + (1 - 0.7) * np.abs(raw - mean)
            self.apart[module, name] = apart

    def scores(self, module):
        A, lam, B = (self.mean[module, n] * self.apart[module, n] for n in Adapter._fields)
        return lam + A.mean(0) + B.mean(1)

    def forget(self, module, slot):
        for table in (self.mean, self.apart):
            table[module, "A"][:, slot] = 0
            table[module, "lam"][slot] = 0
            table[module, "B"][slot] = 0


def test_elalora_swaps_as_lists_do(float64):
    averages, rounds = Averages(), []

    def check(step, moved, gradients, before, after, adapters):
        for name in WEIGHTS:
            if step < 45:
                averages.move(name, moved[name], gradients[name])
        active = np.stack([np.asarray(before[name].active) for name in WEIGHTS])
        expected = active
        if is_round(step):
            scores = np.stack([averages.scores(name) for name in WEIGHTS])
            leaving, granted = exchange_lists(scores, active, count(step), 2)
            expected = masks_after(active, leaving, granted)
            rounds.append(len(leaving))
            for module, slot in np.argwhere(expected & ~active):
                averages.forget(f"m{module}", slot)
                assert adapters[f"m{module}"].lam[slot] == 0
                np.testing.assert_allclose(np.linalg.norm(adapters[f"m{module}"].A[:, slot]), 1,
                                           rtol=1e-5)  # fmt: skip
                assert after[f"m{module}"].matrix_born[slot] == step + 1
        got = np.stack([np.asarray(after[name].active) for name in WEIGHTS])
        np.testing.assert_array_equal(got, expected)
        assert got.sum() == MODULES * RANK

    observe(build(il.elalora), check)
    assert rounds[0] == 3
    assert rounds[-1] == 1
    assert len(rounds) == 9


def test_flexlora_swaps_as_lists_do(float64):
    rounds = []

    def check(step, moved, gradients, before, after, adapters):
        active = np.stack([np.asarray(before[name].active) for name in WEIGHTS])
        expected = active
        if is_round(step):
            energy = np.stack([np.asarray(moved[name].lam) ** 2 for name in WEIGHTS])
            share = np.where(active, energy, 0)
            share /= share.sum(-1, keepdims=True)
            rank = active.sum(-1)
            with np.errstate(divide="ignore", invalid="ignore"):
                spread = -np.nansum(share * np.log(share), axis=-1)
                entropy = np.where(rank > 1, spread / np.log(rank), 0.0)
            leaving, growing = exchange_module_lists(entropy, energy, active, count(step))
            expected = masks_after(active, leaving, np.bincount(growing, minlength=MODULES))
            rounds.append(len(leaving))
        got = np.stack([np.asarray(after[name].active) for name in WEIGHTS])
        np.testing.assert_array_equal(got, expected)
        assert got.sum() == MODULES * RANK

    observe(build(il.flexlora), check)
    assert max(rounds) == 3
    assert len(rounds) == 9


def test_new_directions_are_orthogonal_to_those_that_stay(float64):
    from increlora_jax.methods.elalora import _draw

    draw = np.random.default_rng(0)
    A, _ = np.linalg.qr(draw.normal(size=(2, 9, 5)))
    B, _ = np.linalg.qr(draw.normal(size=(2, 7, 5)))
    adapter = Adapter(jnp.asarray(A), jnp.ones((2, 5)), jnp.asarray(B.swapaxes(1, 2)))
    kept = jnp.array([[1, 1, 0, 0, 1], [1, 0, 0, 0, 0]], bool)
    fresh = _draw(jax.random.key(0), adapter, kept)
    for held, new in ((A, fresh.A), (B, fresh.B.swapaxes(1, 2))):
        inner = np.einsum("mik,mij->mkj", held * np.asarray(kept)[:, None], new)
        np.testing.assert_allclose(inner, 0, atol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(new, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("make", [il.elalora, il.flexlora])
def test_moments_of_all_slots_begin_again_where_asked(make):
    births = {}
    for keeps in (True, False):
        born = births.setdefault(keeps, [])

        def check(step, moved, gradients, before, after, adapters, born=born):
            if step == 9:
                born += [np.asarray(own.matrix_born)[np.asarray(own.active)] for own in
                         after.values()]  # fmt: skip

        observe(build(make, keep_moments=keeps), check)
    assert {0, 10} == set(np.concatenate(births[True]).tolist())
    assert {10} == set(np.concatenate(births[False]).tolist())


@pytest.mark.parametrize("make", [il.elalora, il.flexlora])
@pytest.mark.parametrize(
    ("config", "growth", "message"),
    [
        ({}, {"target_rank": 2.5}, r"--target-rank 2.5 must be whole for --method"),
        ({"tinit": 40, "tfinal": 20}, {}, "--tinit 40 and --tfinal 20 leave none of 60 steps"),
        ({"delta_t": 40}, {}, "--delta-t 40: no round is between steps 5 and 45. Lower it"),
        ({}, {"target_rank": 8}, "--target-rank 8 exceeds the kernel of m0. Lower it"),
        ({}, {"max_rank": "16"}, "--max-rank 16 exceeds the kernel of m0. Lower it"),
        ({}, {"max_rank": "2"}, "--max-rank 2 is below --target-rank 3. Raise it"),
    ],
)
def test_rounds_that_do_not_fit_are_refused(make, config, growth, message):
    with pytest.raises(InputError, match=message):
        build(make, growth=growth, **config)


@pytest.mark.parametrize("make", [il.elalora, il.flexlora])
def test_a_change_of_rank_leaves_the_scale_of_a_module(make):
    _, parts = il.split(build(make).attach(WEIGHTS, None), lambda path: False)
    scales = [parts.rules.scaling(jnp.int32(rank), jnp.float32) for rank in (1, 3, 6)]
    np.testing.assert_allclose(scales, 16 / 3, rtol=1e-5)


def test_prunings_that_never_come_are_refused():
    growth = il.GrowthConfig(top_h=6, init_warmup=2, incre_interval=2, prune_interval=31)
    with pytest.raises(InputError, match=r"--prune-interval 31: no multiple .* after 4, .* 30"):
        il.increlora(WEIGHTS, steps=60, growth=growth)
    assert il.increlora(WEIGHTS, steps=64, growth=growth).steps == 64

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from increlora_jax.config import AdapterConfig, GrowthConfig
from increlora_jax.core.adapter import NEVER, effective_update
from increlora_jax.core.importance import IMPORTANCE_FUNCTIONS
from increlora_jax.core.probe import DenseProbe, ScoreProbe, SlotProbe
from increlora_jax.core.stacking import Groups
from increlora_jax.errors import InputError
from increlora_jax.methods.base import Observation
from increlora_jax.methods.increlora import increlora
from tests import tiny
from tests.tiny import LAYERS, MLP, MODULES, assert_same, run, start, trains_head

STEPS = 24


def method_of(model=None, *, steps=STEPS, adapter=None, dtype=jnp.float32, **growth):
    """Four modules that grow from 1 to 3 ranks, two a round, at steps 4, 6, 8 and 10."""
    settings = {"target_rank": 3, "top_h": 2, "init_warmup": 3, "incre_interval": 2}
    return increlora(
        model or MLP(dtype),
        steps=steps,
        targets=r"layers\.\d+",
        adapter=adapter or AdapterConfig(),
        growth=GrowthConfig(**(settings | growth)),
        is_trained=trains_head,
        dtype=dtype,
    )


class Game:
    """The method alone, fed with scores."""

    def __init__(self, layers=LAYERS, **settings):
        model = MLP(layers=layers)
        self.method = method_of(model, **settings)
        begun = start(self.method, steps=STEPS, model=model)
        self.modules = begun.trainer.skeleton.modules
        self.adapters, self.slots = begun.state.params.adapter, begun.state.slots
        self.state, self.key = begun.state.method, jax.random.key(0)
        self.settings = self.method.settings

    def play(self, step, scores):
        """One update; `scores` of all modules, [] of a function without evidence, or None."""
        evidence = None
        if scores is not None:
            read = [ScoreProbe.of(max, jnp.float32(score)) for score in scores]
            evidence = dict(zip(self.modules, read, strict=len(scores) > 0))
        key = jax.random.fold_in(self.key, step)
        self.adapters, self.slots, self.state, info = self.update(step, key, evidence)
        return info

    def update(self, step, key, evidence):
        groups = Groups(self.adapters)
        adapters, slots, evidence = groups.stack((self.adapters, self.slots, evidence))
        step = jnp.asarray(step)
        gradients = jax.tree.map(jnp.zeros_like, adapters)
        before = step, key, adapters, adapters, slots, self.state
        seen = Observation(*before, gradients, evidence, self.settings)
        return groups.unstack(self.method.update(seen))

    def words(self):
        """The state of every slot of every module, as letters."""
        return [
            "".join(
                "a" if a else "r" if r else "d" for a, r in zip(s.active, s.reserve, strict=True)
            )
            for s in (self.slots[name] for name in self.modules)
        ]


@pytest.mark.parametrize("num", [1, 2])
def test_first_reserve_opens_at_the_end_of_step_zero(num):
    game = Game(incre_rank_num=num)
    info = game.play(0, [1] * LAYERS)
    assert info["rank"].tolist() == [1] * LAYERS
    for word, slots in zip(game.words(), game.slots.values(), strict=True):
        assert word == "a" + "r" * num + "d" * (len(word) - num - 1)
        assert slots.is_advancing
        assert slots.matrix_born.tolist() == [0] + [1] * num + [NEVER] * (len(word) - num - 1)
        assert slots.lambda_born.tolist() == [0] + [NEVER] * (len(word) - 1)
    before = game.words()
    game.play(1, [1] * LAYERS)
    assert game.words() == before


def test_a_run_by_hand():
    """Who grows when, with the averages recomputed beside it."""
    game, draw = Game(), np.random.default_rng(0)
    mean, spread, ranks = np.zeros(LAYERS), np.zeros(LAYERS), np.ones(LAYERS, int)
    for step in range(STEPS):
        scores = draw.random(LAYERS)
        if ranks.sum() < 12:
            mean = 0.85 * mean + 0.15 * scores
            spread = 0.85 * spread + 0.15 * np.abs(scores - mean)
            if step > 3 and step % 2 == 0:
                ranks[np.argsort(-mean * spread)[:2]] += 1
        info = game.play(step, scores)
        assert info["rank"].tolist() == ranks.tolist()
        np.testing.assert_allclose(info["importance"], scores, rtol=1e-6)
        # Once the budget is spent the averages stand still, whatever they are fed.
        np.testing.assert_allclose(info["sensitivity"], mean, rtol=1e-5)
        np.testing.assert_allclose(info["uncertainty"], spread, rtol=1e-5)
    assert ranks.sum() == game.method.rank_budget == 12


def test_when_the_budget_is_spent_the_reserve_stops_for_good():
    game = Game()
    advancing = []
    for step in range(STEPS):
        game.play(step, [4, 3, 2, 1])
        advancing.append({bool(slots.is_advancing) for slots in game.slots.values()})
    # The last round is step 10; the reserve slots themselves stay.
    assert advancing == [{True}] * 10 + [{False}] * 14
    assert all("r" in word for word in game.words())


def test_without_advance_learning_the_reserve_never_takes_part():
    game = Game(advance_learn=False)
    for step in range(STEPS):
        game.play(step, [4, 3, 2, 1])
        assert not any(slots.is_advancing for slots in game.slots.values())
        for slots in game.slots.values():
            assert (slots.matrix_born[slots.reserve] == NEVER).all()
    assert sum(int(slots.rank) for slots in game.slots.values()) == 12


def test_last_grant_is_cut_to_the_budget():
    game = Game(incre_rank_num=4, target_total_rank=9)
    for step in range(5):
        info = game.play(step, [1, 2, 9, 3])
    assert info["rank"].tolist() == [1, 1, 5, 2]


def test_ties_go_to_the_first_in_module_order_and_not_in_the_dictionarys():
    game = Game(layers=11, top_h=3, target_total_rank=14)
    assert game.modules[2:] == tuple(f"layers.{i}" for i in range(2, 11))
    for step in range(5):
        info = game.play(step, [0, 0, *[1] * 9])
    grown = [name for name in game.modules if game.slots[name].rank == 2]
    assert grown == ["layers.2", "layers.3", "layers.4"]  # a sort by name begins 0, 1, 10
    assert info["rank"].tolist() == [1, 1, 2, 2, 2, *[1] * 6]


def test_an_unscored_step_moves_no_average_and_grows_nothing():
    game = Game()
    game.play(0, [1] * LAYERS)
    before = game.state, game.words()
    info = game.play(4, None)
    assert_same(game.state, before[0])
    assert game.words() == before[1]
    assert set(info) == {"rank"}


def test_unsmoothed_functions_rank_by_the_score_of_the_step():
    game = Game(importance="magnitude")
    for step in range(5):
        for index, name in enumerate(game.modules):  # the last module's update is the largest
            lam = game.adapters[name].lam.at[0].set(index + 1.0)
            game.adapters[name] = game.adapters[name]._replace(lam=lam)
        info = game.play(step, [])
    assert info["rank"].tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("name", ["sensitivity", "gradient_norm"])
def test_a_summed_gradient_is_scored_after_the_sum(name):
    game = Game(importance=name)
    draw = np.random.default_rng(0)
    evidence, expected = {}, []
    for module, adapter in game.adapters.items():
        shape = adapter.A.shape[0], adapter.B.shape[1]
        lam = jnp.asarray(draw.normal(size=adapter.lam.shape), jnp.float32)
        game.adapters[module] = adapter._replace(lam=lam)
        evidence[module] = DenseProbe(jnp.asarray(draw.normal(size=shape), jnp.float32))
        scaling = AdapterConfig().scaling_rule(3)
        delta = effective_update(game.adapters[module], game.slots[module], scaling).delta
        weight = np.abs(delta) if name == "sensitivity" else 1
        G = np.asarray(evidence[module].value)
        both = np.abs(weight * G).sum() if name == "sensitivity" else np.linalg.norm(G)
        expected.append(both / np.sqrt(G.size))
    updated = game.update(1, jax.random.key(0), evidence)
    np.testing.assert_allclose(updated.info["importance"], expected, rtol=1e-5)


@pytest.mark.parametrize("is_summed", [False, True])
@pytest.mark.parametrize("name", IMPORTANCE_FUNCTIONS)
def test_probes_are_zeros_of_the_evidence_a_function_reads(name, is_summed):
    game = Game(importance=name)
    probes = game.method.probes(game.adapters, is_summed)
    dense = (DenseProbe, (6, 8)) if is_summed else (ScoreProbe, ())
    wanted = {
        "lambda_gradient": (SlotProbe, game.adapters["layers.0"].lam.shape),
        "sensitivity": dense,
        "gradient_norm": dense,
    }
    if name in wanted:
        assert probes.keys() == game.adapters.keys()
        probe = probes["layers.0"]
        assert (type(probe), probe.value.shape) == wanted[name]
        assert not any(probe.value.any() for probe in probes.values())
    else:
        assert probes == {}


@pytest.mark.parametrize(
    ("window", "scored"),
    [
        (None, range(STEPS)),
        (1, range(4, STEPS, 2)),
        (2, range(3, STEPS)),
        (99, range(STEPS)),
    ],
)
def test_steps_that_are_scored(window, scored):
    method = method_of(score_window=window)
    assert [s for s in range(STEPS) if method.is_scored(s, False)] == list(scored)
    assert not any(method.is_scored(step, True) for step in range(STEPS))


def test_a_window_looks_back_from_each_round():
    method = method_of(steps=60, init_warmup=10, incre_interval=8, score_window=3)
    scored = [step for step in range(40) if method.is_scored(step, False)]
    assert scored == [14, 15, 16, 22, 23, 24, 30, 31, 32, 38, 39]


@pytest.mark.parametrize(
    ("importance", "interval", "window"),
    [("sensitivity", 500, 15), ("sensitivity", 8, 4), ("magnitude", 500, 1)],
)
def test_the_automatic_window_is_short_on_host_and_device_alike(importance, interval, window):
    schedule = {"steps": 3000, "init_warmup": 0, "incre_interval": interval}
    method = method_of(**schedule, importance=importance, score_window="auto")
    scored = [step for step in range(interval + 1) if step and method.is_scored(step, False)]
    assert scored == list(range(interval + 1 - window, interval + 1))
    assert method.settings["score_window"] == window


@pytest.mark.parametrize(("importance", "window"), [("sensitivity", 169), ("magnitude", 1)])
def test_all_that_can_bear_on_a_round_is_scored_by_default(importance, window):
    method = method_of(steps=3000, init_warmup=10, incre_interval=500, importance=importance)
    scored = [step for step in range(600) if method.is_scored(step, False)]
    assert scored == list(range(501 - window, 501))


def test_with_growth_off_nothing_is_scored_opened_or_grown():
    method = method_of(growth=False)
    assert method.rank_budget == LAYERS
    assert not any(method.is_scored(step, False) for step in range(STEPS))
    game = Game(growth=False)
    before = game.words()
    for step in range(8):
        info = game.play(step, None)
    assert game.words() == before
    assert info["rank"].tolist() == [1] * LAYERS
    assert not any(slots.is_advancing for slots in game.slots.values())


def test_plan_is_said_and_attached():
    method = method_of(target_total_rank=10, adapter=AdapterConfig(lora_alpha=7, scaling="target"))
    assert method.rank_budget == 10
    assert "total rank 4 → 10 in 3 rounds, steps 4 to 8" in method.description
    assert method.regularization == 0.1
    begun = start(method, steps=STEPS)
    assert begun.trainer.skeleton.modules == tuple(MODULES)
    model = begun.trainer.skeleton.assemble(begun.parts)
    own = model.layers[0].adapter
    assert own.scaling.alpha == 7
    assert own.scaling.rule == "target"
    assert own.lam.shape == (6,)  # 8 asked for, 6 possible


def test_a_plan_that_cannot_finish_is_refused_before_anything_is_attached():
    with pytest.raises(InputError, match="Raise --top-h"):
        method_of(steps=8)


@pytest.mark.parametrize("name", IMPORTANCE_FUNCTIONS)
def test_every_function_grows_a_run_to_the_exact_budget(name):
    begun = start(method_of(importance=name, incre_rank_num=2, target_total_rank=13), steps=STEPS)
    history = run(begun, 9)
    totals = [int(state.total_rank) for state, _ in history]
    # 4 modules, 2 grow by 2 at a time; the third round has one rank left to give.
    assert totals == [4] * 4 + [8] * 2 + [12] * 2 + [13]
    state, info = history[-1]
    assert not any(slots.is_advancing for slots in state.slots.values())
    assert info["importance"].shape == (LAYERS,)
    assert all(bool(info["is_finite"]) for _, info in history)


def test_uniform_growth_is_even():
    game = Game(importance="uniform")
    ranks = [game.play(step, [])["rank"].tolist() for step in range(12)]
    assert ranks[4] == [2, 2, 1, 1]
    assert ranks[6] == [2, 2, 2, 2]
    assert ranks[-1] == [3, 3, 3, 3]
    assert all(max(row) - min(row) <= 1 for row in ranks)


def test_random_growth_follows_the_runs_key_alone():
    def ranks(seed):
        game = Game(importance="random", top_h=1, target_rank=2.5)
        game.key = jax.random.key(seed)
        return [tuple(game.play(step, [])["rank"].tolist()) for step in range(16)]

    assert ranks(0) == ranks(0)
    assert len({tuple(ranks(seed)) for seed in range(4)}) > 1


def test_a_slot_enters_training_through_its_births():
    """Over a run: reserve A, B move a step after they open, λ a step after it counts."""
    begun = start(method_of(), steps=STEPS, warmup_steps=0)
    history = run(begun, 8)
    for step in range(1, 8):
        before, after = (history[i][0] for i in (step - 1, step))
        for name in MODULES:
            old, new = before.params.adapter[name], after.params.adapter[name]
            slots = before.slots[name]
            moved = (np.asarray(old.A) != np.asarray(new.A)).any(axis=0)
            assert moved.tolist() == (slots.active | slots.reserve).tolist()
            entered = after.slots[name].active & ~slots.active
            changed = np.asarray(old.lam) != np.asarray(new.lam)
            assert changed.tolist() == (slots.active | entered).tolist()
            np.testing.assert_array_equal(new.lam[entered], np.float32(1e-5))


class Twice(nnx.Module):
    """One layer, called twice."""

    def __init__(self):
        self.inner = nnx.Linear(tiny.FEATURES, tiny.FEATURES, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(tiny.FEATURES, tiny.CLASSES, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.head(jnp.tanh(self.inner(jnp.tanh(self.inner(x)))))


def test_a_layer_called_twice_is_scored_by_the_gradient_of_both_calls():
    model, adapter = Twice(), AdapterConfig()
    growth = GrowthConfig(init_warmup=1, incre_interval=1)
    method = increlora(model, steps=9, targets=["inner"], adapter=adapter, growth=growth)
    begun = start(method, steps=9, model=model, warmup_steps=0)
    state = run(begun, 2)[-1][0]
    batch = tiny.batch_of(seed=2)
    _, info = begun.step(state, begun.parts.base, batch, is_scored=True)
    update = effective_update(
        state.params.adapter["inner"], state.slots["inner"], adapter.scaling_rule(2)
    )

    def loss(delta):
        whole = Twice()
        whole.inner.kernel[...] += delta
        total, weight = tiny.cross_entropy(whole, batch)
        return total / weight

    G = jax.grad(loss)(update.delta)
    expected = jnp.abs(update.delta * G).sum() / np.sqrt(G.size)
    assert expected > 0
    np.testing.assert_allclose(info["importance"], [expected], rtol=1e-4)  # float32


def test_a_step_scored_for_another_runs_sake_moves_nothing_outside_its_own_window():
    game = Game(score_window=1)
    game.play(0, None)
    game.play(3, [1, 2, 3, 4])
    np.testing.assert_array_equal(game.state.sensitivity, 0)
    game.play(4, [1, 2, 3, 4])
    assert game.state.sensitivity.all()
    assert [words[:2] for words in game.words()] == ["ar", "ar", "aa", "aa"]


def test_a_step_follows_the_numbers_that_it_is_given_and_not_those_of_the_method():
    game = Game()
    game.settings = game.method.settings | {"beta1": 0.0, "first_reserve": 2, "init_warmup": 0}
    game.settings |= {"incre_interval": 1, "top_h": 1, "rank_budget": LAYERS + 1}
    game.play(0, [1, 2, 3, 4])
    np.testing.assert_array_equal(game.state.sensitivity, [1, 2, 3, 4])
    assert [word[:4] for word in game.words()] == ["arrd"] * LAYERS
    # Without memory there is no uncertainty: all modules tie.
    assert game.play(1, [1, 5, 3, 4])["rank"].tolist() == [2, 1, 1, 1]
    assert game.play(2, [1, 2, 3, 4])["rank"].tolist() == [2, 1, 1, 1]

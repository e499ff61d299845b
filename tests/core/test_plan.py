import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from increlora_jax.core.allocator import allocate, is_round
from increlora_jax.core.plan import plan_growth
from increlora_jax.errors import InputError

DEFAULTS = {
    "steps": 600,
    "initial_rank": 1,
    "target_rank": 2,
    "target_total_rank": None,
    "top_h": 4,
    "init_warmup": 60,
    "incre_interval": 40,
    "incre_rank_num": 1,
    "max_rank": "auto",
}


def plan_of(modules=36, size=(384, 384), **settings):
    sizes = modules if isinstance(modules, dict) else {f"m{i}": size for i in range(modules)}
    return plan_growth(sizes, **(DEFAULTS | settings))


def width_of(plan):
    (width,) = set(plan.max_ranks.values())
    return width


def test_the_issues_command_by_hand():
    plan = plan_of()
    assert (plan.steps, plan.modules, plan.initial_total, plan.budget) == (600, 36, 36, 72)
    # 36 ranks to grant, 4 a round; the first multiple of 40 after step 60 is 80.
    assert plan.rounds == tuple(range(80, 401, 40))
    # The luckiest module: 1 + 9 rounds, and one in reserve: 11, rounded up to 16.
    assert width_of(plan) == 16


def test_rounds_start_strictly_after_the_warmup():
    assert plan_of(init_warmup=80).rounds[0] == 120
    assert plan_of(init_warmup=79).rounds[0] == 80
    assert plan_of(init_warmup=0).rounds[0] == 40


def test_last_step_of_the_run_can_be_the_last_round():
    assert plan_of(steps=401).rounds[-1] == 400
    with pytest.raises(InputError, match="takes 9 rounds, but 400 steps hold only 8"):
        plan_of(steps=400)


@pytest.mark.parametrize(
    ("settings", "budget", "rounds"),
    [
        ({"target_rank": 2.5, "steps": 700}, 90, 14),
        ({"target_total_rank": 37}, 37, 1),
        ({"target_total_rank": 36}, 36, 0),
        ({"target_total_rank": 72, "target_rank": 99}, 72, 9),
        ({"top_h": 99}, 72, 1),  # no more than every module
        ({"incre_rank_num": 5}, 72, 2),
        ({"initial_rank": 2, "target_rank": 3}, 108, 9),
    ],
)
def test_budget_and_number_of_rounds(settings, budget, rounds):
    plan = plan_of(**settings)
    assert (plan.budget, len(plan.rounds)) == (budget, rounds)


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        ({"target_total_rank": 36}, 8),  # nothing grows: one slot, no reserve
        ({"initial_rank": 8, "target_rank": 8}, 8),
        ({"initial_rank": 9, "target_rank": 9}, 16),
        ({"top_h": 99}, 8),  # 1 + 1 + 1
        ({"target_total_rank": 42, "top_h": 1}, 8),  # 1 + 6 + 1
        ({"target_total_rank": 43, "top_h": 1, "steps": 999}, 16),  # 1 + 7 + 1
        # One module takes all that is left, but not more: 5 + 4, the last grant cut to 1.
        ({"target_total_rank": 41, "top_h": 1, "incre_rank_num": 4}, 16),
        ({"target_rank": 8, "steps": 99999, "top_h": 1}, 32),  # auto: at most 32
        ({"target_rank": 9, "steps": 99999, "top_h": 1}, 40),  # auto: at most 4 · 9, rounded
        ({"target_rank": 8, "steps": 99999, "top_h": 1, "max_rank": "exact"}, 256),  # 1 + 252 + 1
        ({"max_rank": 5}, 5),
    ],
)
def test_buffers_hold_what_the_plan_could_give_one_module(settings, width):
    assert width_of(plan_of(**settings)) == width


def test_last_grant_of_one_module_is_cut_to_the_budget():
    plan = plan_of(3, target_total_rank=11, top_h=1, incre_rank_num=7, max_rank="exact")
    assert len(plan.rounds) == 2
    # 11 less one each of the others, and 7 in reserve: 16; by whole rounds it would be 1 + 14 + 7.
    assert width_of(plan) == 16


def test_buffers_stay_within_each_matrix():
    sizes = {"wide": (384, 384), "in": (7, 384), "out": (384, 12)}
    plan = plan_of(sizes, target_rank=8, top_h=1, steps=9999)
    assert plan.max_ranks == {"wide": 24, "in": 7, "out": 12}
    assert list(plan.max_ranks) == list(sizes)  # in module order


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 100}, r"takes 9 rounds, but 100 steps hold only 1. Raise --top-h, "
         r"--incre-rank-num or --max-steps \(or --num-train-epochs\), or lower --incre-interval, "
         r"--init-warmup or --target-rank"),
        ({"target_rank": 0.5}, "budget of 18 .* below the initial total of 36 .*Raise "
         "--target-rank or --target-total-rank, or lower --initial-rank"),
        ({"target_total_rank": 35}, "budget of 35 .* below .* 36 "),
        ({"initial_rank": 385}, "--initial-rank 385 .* m0 can have: its 384 × 384 .* at most 384.*"
         "--exclude-modules"),
        ({"max_rank": 385}, "--max-rank 385 is more than the matrix of m0"),
        ({"max_rank": 1, "initial_rank": 2}, "--max-rank 1 is below --initial-rank 2"),
        ({"max_rank": 1}, "budget of 72 .* hold 36 in all. Raise --max-rank"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_names_the_flag_to_change(settings, message):
    with pytest.raises(InputError, match=message):
        plan_of(**settings)


def test_the_module_a_rank_does_not_fit_is_named():
    with pytest.raises(InputError, match="matrix of small can have: its 4 × 384 kernel"):
        plan_of({"large": (384, 384), "small": (4, 384)}, initial_rank=5, target_rank=6)


def test_description_says_what_will_happen():
    assert plan_of().describe() == (
        "36 modules, 600 steps, buffers of 16 slots; total rank 36 → 72 in 9 rounds, steps 80 to "
        "400, then 199 steps at full budget"
    )
    assert (
        "8 to 16 slots" in plan_of({"a": (8, 64), "b": (64, 64)}, top_h=1, target_rank=6).describe()
    )
    assert plan_of(target_total_rank=36).describe().endswith("total rank 36 throughout")


allocate_compiled = jax.jit(allocate, static_argnames=("top_h", "incre_rank_num"))


@settings(deadline=None, max_examples=40)
@given(
    modules=st.sampled_from([1, 3, 7]),
    initial_rank=st.integers(1, 2),
    extra=st.integers(1, 60),
    top_h=st.sampled_from([1, 2, 5]),
    incre_rank_num=st.sampled_from([1, 3]),
    init_warmup=st.integers(0, 9),
    incre_interval=st.integers(1, 5),
    seed=st.integers(0, 9),
    is_one_sided=st.booleans(),
)
def test_growth_spends_the_budget_exactly_at_the_last_planned_round(
    modules, initial_rank, extra, top_h, incre_rank_num, init_warmup, incre_interval, seed,
    is_one_sided,
):  # fmt: skip
    plan = plan_of(
        modules,
        size=(999, 999),
        steps=999,
        initial_rank=initial_rank,
        target_total_rank=modules * initial_rank + extra,
        top_h=top_h,
        init_warmup=init_warmup,
        incre_interval=incre_interval,
        incre_rank_num=incre_rank_num,
        max_rank="exact",
    )
    draw, width = np.random.default_rng(seed), np.array(list(plan.max_ranks.values()))
    rank, reserve = np.full(modules, initial_rank), np.full(modules, incre_rank_num)
    done = []
    for step in range(plan.rounds[-1] + 1):
        if not is_round(
            jnp.asarray(step),
            jnp.asarray(rank.sum()),
            budget=plan.budget,
            warmup=init_warmup,
            interval=incre_interval,
        ):
            continue
        # A module that wins every round is the one the buffers must be wide enough for.
        importance = -np.arange(modules) if is_one_sided else draw.random(modules)
        assert (reserve == incre_rank_num).all()  # nobody is full
        grants = allocate_compiled(
            jnp.asarray(importance, jnp.float32),
            jnp.asarray(reserve, jnp.int32),
            jnp.asarray(plan.budget - rank.sum(), jnp.int32),
            top_h=top_h,
            incre_rank_num=incre_rank_num,
        )
        rank = rank + np.asarray(grants)
        reserve = reserve - grants + np.minimum(grants, width - rank - (reserve - grants))
        done.append(step)
    assert tuple(done) == plan.rounds
    assert rank.sum() == plan.budget

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from increlora_jax.core.adapter import NEVER, Adapter, Slots
from increlora_jax.core.allocator import allocate, grow, is_round, open_reserve

MODULES = 6
STEP = jnp.asarray(10, jnp.int32)

# A handful of values, so that ties (and 0.0 beside -0.0) are common.
importances = st.lists(
    st.sampled_from([-3.0, -0.0, 0.0, 1e-30, 0.5, 0.5, 2.0]), min_size=MODULES, max_size=MODULES
)
availables = st.lists(st.integers(0, 5), min_size=MODULES, max_size=MODULES)
allocate_compiled = jax.jit(allocate, static_argnames=("top_h", "incre_rank_num"))


def grants_of(importance, available, left, top_h, incre_rank_num):
    return allocate_compiled(
        jnp.asarray(importance, jnp.float32),
        jnp.asarray(available, jnp.int32),
        jnp.asarray(left, jnp.int32),
        top_h=top_h,
        incre_rank_num=incre_rank_num,
    ).tolist()


def grants_by_hand(importance, available, left, top_h, incre_rank_num):
    """Grant to one module after another."""
    grants = [0] * len(importance)
    with_room = [m for m in range(len(importance)) if available[m]]
    for module in sorted(with_room, key=lambda m: -importance[m])[:top_h]:  # a stable sort
        grants[module] = min(incre_rank_num, available[module], left)
        left -= grants[module]
    return grants


@settings(deadline=None)  # the first example compiles
@given(importances, availables, st.integers(0, 30), st.integers(1, 8), st.integers(1, 4))
def test_grants_are_made_one_after_another_while_budget_is_left(
    importance, available, left, top_h, incre_rank_num
):
    arguments = importance, available, left, top_h, incre_rank_num
    assert grants_of(*arguments) == grants_by_hand(*arguments)


@settings(deadline=None)  # the first example compiles
@given(importances, availables, st.integers(0, 30), st.integers(1, 8), st.integers(1, 4))
def test_grants_stay_within_every_bound(importance, available, left, top_h, incre_rank_num):
    grants = np.array(grants_of(importance, available, left, top_h, incre_rank_num))
    assert (grants >= 0).all()
    assert (grants <= available).all()
    assert grants.max() <= incre_rank_num
    assert grants.sum() <= left
    assert (grants > 0).sum() <= top_h


@pytest.mark.parametrize(
    ("importance", "available", "left", "expected"),
    [
        ([1, 3, 2, 0], [4, 4, 4, 4], 99, [0, 4, 4, 0]),  # the top two
        ([7, 7, 7, 7], [4, 4, 4, 4], 99, [4, 4, 0, 0]),  # ties by module order
        ([0, 7, 0, 7], [4, 4, 4, 4], 4, [0, 4, 0, 0]),  # likewise for the last grant
        ([1, 3, 2, 0], [4, 0, 4, 4], 99, [4, 0, 4, 0]),  # a full module is passed over
        ([1, 3, 2, 0], [4, 2, 4, 4], 99, [0, 2, 4, 0]),  # a nearly full one takes what it has
        ([1, 3, 2, 0], [4, 4, 4, 4], 6, [0, 4, 2, 0]),  # the last grant is cut
        ([1, 3, 2, 0], [4, 4, 4, 4], 3, [0, 3, 0, 0]),  # the first grant is the last
        ([1, 3, 2, 0], [4, 4, 4, 4], 0, [0, 0, 0, 0]),
        ([1, 3, 2, 0], [0, 0, 0, 0], 99, [0, 0, 0, 0]),
        ([-9, -1, -2, -3], [4, 4, 4, 4], 99, [0, 4, 4, 0]),  # scores may be negative
    ],
)
def test_a_round_by_hand(importance, available, left, expected):
    assert grants_of(importance, available, left, top_h=2, incre_rank_num=4) == expected


def test_ties_of_many_go_by_module_order():
    # Enough of them for a sort that is not stable to show.
    grants = grants_of([1.0] * 72, [1] * 72, 99, top_h=10, incre_rank_num=1)
    assert grants == [1] * 10 + [0] * 62


def test_more_modules_asked_for_than_there_are():
    assert grants_of([1, 2], [1, 1], 9, top_h=5, incre_rank_num=1) == [1, 1]


def test_budget_is_exact_where_the_published_code_overshoots():
    """MRPC at rank 8: 72 modules, 576 ranks, top_h 10, growth 4; published: 592 after 13 rounds."""
    budget, ranks, draw = 576, np.ones(72, int), np.random.default_rng(0)
    rounds = []
    while ranks.sum() < budget:
        grants = np.array(grants_of(draw.random(72), [4] * 72, budget - ranks.sum(), 10, 4))
        ranks += grants
        rounds.append(grants)
    assert ranks.sum() == budget
    assert 72 + 13 * 10 * 4 == 592
    assert [int(grants.sum()) for grants in rounds] == [40] * 12 + [24]
    assert sorted(rounds[-1])[-7:] == [0] + [4] * 6


@pytest.mark.parametrize(
    ("step", "total", "expected"),
    [
        (30, 5, True),
        (20, 5, False),  # not after the warmup, at it
        (31, 5, False),
        (40, 9, True),
        (40, 10, False),  # the budget is spent
        (40, 11, False),
        (0, 5, False),
    ],
)
def test_rounds_come_after_the_warmup_at_the_interval_while_budget_is_left(step, total, expected):
    is_now = is_round(jnp.asarray(step), jnp.asarray(total), budget=10, warmup=20, interval=10)
    assert bool(is_now) is expected


def test_step_zero_is_no_round_even_without_warmup():
    assert not is_round(jnp.asarray(0), jnp.asarray(1), budget=9, warmup=0, interval=1)


def letters_of(slots):
    """The state of each slot as a word, and a check that no slot is in two."""
    assert not (slots.active & slots.reserve).any()
    words = np.where(slots.active, "a", np.where(slots.reserve, "r", "d"))
    return "".join(words) if words.ndim == 1 else ["".join(word) for word in words]


def adapter_of(slots):
    shape = slots.active.shape
    return Adapter(
        jnp.ones((*shape[:-1], 3, shape[-1])), jnp.full(shape, 0.5), jnp.ones((*shape, 3))
    )


def grown(slots, grant, is_ahead=True):
    grant = jnp.asarray(grant, jnp.int32)
    return grow(adapter_of(slots), slots, grant, STEP, is_advance_learning=is_ahead)


@pytest.mark.parametrize(
    ("before", "grant", "after"),
    [
        ("arddd", 1, "aardd"),
        ("arrdddd", 2, "aaarrdd"),
        ("arrdd", 1, "aarrd"),
        ("arrddd", 0, "arrddd"),
        ("arrd", 2, "aaar"),  # one dormant slot is left to open
        ("aar", 1, "aaa"),  # none is
        ("aaa", 1, "aaa"),
        ("drdad", 1, "radad"),  # slots in order, gaps included
    ],
)
@pytest.mark.parametrize("is_ahead", [True, False])
def test_growth_turns_reserve_active_and_opens_as_much(make_slots, before, grant, after, is_ahead):
    _, slots = grown(make_slots(before), grant, is_ahead)
    assert letters_of(slots) == after


def test_births_and_entry_with_advance_learning(make_slots):
    before = make_slots("arrdd", lambda_born=3, matrix_born=4)
    adapter, after = grown(before, 1)
    assert letters_of(after) == "aarrd"
    # Slot 1 turned active: λ is born, its A and B have been learning since step 4.
    assert after.lambda_born.tolist() == [3, 11, NEVER, NEVER, NEVER]
    assert after.matrix_born.tolist() == [4, 4, 4, 11, NEVER]
    np.testing.assert_array_equal(adapter.lam, np.float32([0.5, 1e-5, 0.5, 0.5, 0.5]))


def test_births_and_entry_without_advance_learning(make_slots):
    before = make_slots("arrdd", lambda_born=3, matrix_born=4)
    before = before._replace(matrix_born=jnp.asarray([4, *[NEVER] * 4], jnp.int32))
    adapter, after = grown(before, 1, is_ahead=False)
    # All of slot 1 is born at once; the reserve does not learn.
    assert after.lambda_born.tolist() == [3, 11, NEVER, NEVER, NEVER]
    assert after.matrix_born.tolist() == [4, 11, NEVER, NEVER, NEVER]
    np.testing.assert_array_equal(adapter.lam, np.float32([0.5, 0.0, 0.5, 0.5, 0.5]))


@pytest.mark.parametrize("is_ahead", [True, False])
def test_growth_by_nothing_changes_nothing(make_slots, is_ahead):
    slots = make_slots("aarrd")
    adapter, after = grown(slots, 0, is_ahead)
    jax.tree.map(np.testing.assert_array_equal, (adapter, after), (adapter_of(slots), slots))


def test_growth_leaves_matrices_and_advancing_alone(make_slots):
    slots = make_slots("arrdd", is_advancing=True)
    adapter, after = grown(slots, 2)
    assert after.is_advancing
    np.testing.assert_array_equal(adapter.A, adapter_of(slots).A)
    np.testing.assert_array_equal(adapter.B, adapter_of(slots).B)


def test_stacked_layers_grow_each_by_its_own_grant(make_slots):
    adapter, after = grown(make_slots(["arrdd", "aarrd", "arddd"]), [1, 2, 0])
    assert letters_of(after) == ["aarrd", "aaaar", "arddd"]
    np.testing.assert_array_equal(adapter.lam[1], np.float32([0.5, 0.5, 1e-5, 1e-5, 0.5]))


@settings(deadline=None)  # the first example compiles
@given(st.text("ard", min_size=5, max_size=5), st.integers(0, 5), st.booleans())
def test_growth_keeps_count_whatever_the_slots(word, grant, is_ahead):
    letters = np.array(list(word))
    born = jnp.zeros(5, jnp.int32)
    before = Slots(
        jnp.asarray(letters == "a"), jnp.asarray(letters == "r"), jnp.asarray(True), born, born
    )
    _, after = grown(before, grant, is_ahead)
    activated = min(grant, word.count("r"))
    opened = min(grant, word.count("d"))
    found = letters_of(after)
    assert found.count("a") == word.count("a") + activated
    assert found.count("r") == word.count("r") - activated + opened
    assert (np.asarray(after.lambda_born) == 11).sum() == activated
    assert (np.asarray(after.matrix_born) == 11).sum() == (opened if is_ahead else activated)


@pytest.mark.parametrize(
    ("before", "count", "after", "new"), [("addd", 2, "arrd", [1, 2]), ("aard", 3, "aarr", [3])]
)
@pytest.mark.parametrize("is_ahead", [True, False])
def test_reserve_opens_the_first_dormant_slots(make_slots, before, count, after, new, is_ahead):
    slots = make_slots(before)
    opened = open_reserve(slots, jnp.asarray(count), STEP, is_advance_learning=is_ahead)
    assert letters_of(opened) == after
    born = np.asarray(slots.matrix_born).copy()
    born[new] = 11 if is_ahead else NEVER
    assert opened.matrix_born.tolist() == born.tolist()
    assert opened.lambda_born.tolist() == slots.lambda_born.tolist()


def test_every_stacked_layer_opens_its_reserve(make_slots):
    slots = make_slots(["addd", "aadd"])
    opened = open_reserve(slots, jnp.asarray([1, 2]), STEP, is_advance_learning=True)
    assert letters_of(opened) == ["ardd", "aarr"]

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.core.adapter import (
    Scaling,
    Update,
    effective_update,
    over_stack,
)
from increlora_jax.core.importance import sensitivity
from increlora_jax.core.probe import (
    DenseProbe,
    ScoreProbe,
    SlotProbe,
    effective_delta,
    spread_probe,
)
from increlora_jax.core.product import apply_sum, apply_update, is_sum_cheaper

IN, SLOTS, OUT = 11, 4, 13  # all different, and 15 rows: a shape tells what an array is
BATCH = (3, 5)
STATES = "arad"


@pytest.fixture
def update(float64, make_adapter, make_slots):
    adapter = make_adapter(IN, SLOTS, OUT)
    # A large λ̂ on the reserve too: at 1e-5 a wrong reserve would hide below the tolerance.
    return effective_update(adapter, make_slots(STATES), Scaling(16))._replace(lam_hat=adapter.lam)


@pytest.fixture
def x(float64):
    return jnp.asarray(np.random.default_rng(1).normal(size=(*BATCH, IN)))


@pytest.fixture
def dy(float64):
    return jnp.asarray(np.random.default_rng(2).normal(size=(*BATCH, OUT)))


def of_score(dtype=None, stack=()):
    return ScoreProbe.of(sensitivity, jnp.zeros(stack, dtype))


def of_matrix(dtype=None):
    return DenseProbe(jnp.zeros((IN, OUT), dtype))


def of_slots():
    return SlotProbe(jnp.zeros(SLOTS))


@pytest.fixture(params=[of_score, of_matrix, of_slots])
def probe(float64, request):
    return request.param()


def dense_product(x, A, lam_hat, B, scale):
    return x @ (scale * (A * lam_hat) @ B)


def apply_probed(x, update, probe):
    return apply_update(x, update, spread_probe(probe, update))


def cotangents(x, update, dy, probe=None):
    _, pull = jax.vjp(apply_probed, x, update, probe)
    return pull(dy)


def dense_gradient(x, dy):
    return np.einsum("abi,abo->io", x, dy)


def shapes_of(jaxpr):
    """The shape of every array that a jaxpr, inner ones included, takes, keeps or makes."""
    found = {v.aval.shape for v in [*jaxpr.invars, *jaxpr.constvars]}
    for equation in jaxpr.eqns:
        found |= {v.aval.shape for v in equation.outvars}
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                found |= shapes_of(inner.jaxpr)
            elif hasattr(inner, "eqns"):
                found |= shapes_of(inner)
    return found


def backward_shapes(x, update, dy, probe):
    def product(x, probe, A, lam_hat, B):
        return apply_probed(x, update._replace(A=A, lam_hat=lam_hat, B=B), probe)

    def backward(*args):
        return jax.vjp(product, *args)[1](dy)

    return shapes_of(jax.make_jaxpr(backward)(x, probe, *update[:3]).jaxpr)


def test_product_is_the_dense_one(x, update):
    A, lam_hat, B, scale = (np.asarray(part) for part in update[:4])
    expected = dense_product(np.asarray(x), A, lam_hat, B, scale)
    np.testing.assert_allclose(apply_update(x, update), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3, 4)])
def test_product_takes_any_leading_axes(update, batch):
    x = jnp.asarray(np.random.default_rng(3).normal(size=(*batch, IN)))
    y = apply_update(x, update)
    assert y.shape == (*batch, OUT)
    np.testing.assert_allclose(y, x @ update.delta, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("argument", ["x", "A", "lam_hat", "B", "scale"])
def test_cotangents_are_those_of_the_dense_form(x, update, dy, argument):
    arguments = dict(x=x, **{name: getattr(update, name) for name in ("A", "lam_hat", "B")})
    arguments["scale"] = update.scale

    def factored(value):
        x, *parts = (arguments | {argument: value}).values()
        return jnp.vdot(apply_update(x, Update(*parts, update.slots)), dy)

    def dense(value):
        return jnp.vdot(dense_product(**(arguments | {argument: value})), dy)

    got, expected = (jax.grad(f)(arguments[argument]) for f in (factored, dense))
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_scalar_probe_receives_the_importance(x, update, dy):
    G = dense_gradient(x, dy)
    expected = np.abs(np.asarray(update.delta) * G).sum() / np.sqrt(IN * OUT)
    _, _, importance = cotangents(x, update, dy, of_score())
    np.testing.assert_allclose(importance.value, expected, rtol=1e-12)


def test_matrix_probe_receives_the_dense_gradient(x, update, dy):
    _, _, gradient = cotangents(x, update, dy, of_matrix())
    np.testing.assert_allclose(gradient.value, dense_gradient(x, dy), rtol=1e-12, atol=1e-12)


def test_slot_probe_receives_the_gradient_of_lambda_hat(x, update, dy):
    A, B, s = (np.asarray(part) for part in (update.A, update.B, update.scale))
    _, _, gradient = cotangents(x, update, dy, of_slots())
    expected = s * np.diag(A.T @ dense_gradient(x, dy) @ B.T)
    np.testing.assert_allclose(gradient.value, expected, rtol=1e-12, atol=1e-12)


def test_probe_changes_neither_output_nor_other_cotangents(x, update, dy, probe):
    np.testing.assert_array_equal(apply_probed(x, update, probe), apply_update(x, update))
    with_probe, without = cotangents(x, update, dy, probe), cotangents(x, update, dy)
    for got, expected in zip(with_probe[:2], without[:2], strict=True):
        jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("make", [lambda: None, of_slots])
def test_no_dense_matrix_is_formed_without_a_dense_probe(x, update, dy, make):
    shapes = backward_shapes(x, update, dy, make())
    assert (IN, SLOTS) in shapes  # the search does look inside
    assert not {(IN, OUT), (OUT, IN)} & shapes


def test_a_dense_matrix_is_formed_for_a_scalar_probe(x, update, dy):
    assert (IN, OUT) in backward_shapes(x, update, dy, of_score())


def test_forward_pass_of_a_scored_step_stays_factored(x, update):
    program = jax.jit(apply_probed).lower(x, update, of_score()).compile().as_text()
    assert f"[{IN},{SLOTS}]" in program
    assert f"[{IN},{OUT}]" not in program


def test_a_layer_called_twice_is_scored_by_the_sum_of_its_gradients(x, update, dy):
    def twice(probe):
        probe = spread_probe(probe, update)
        y = apply_update(x, update, probe), apply_update(jnp.cos(x), update, probe)
        return jnp.vdot(y[0], dy) - 2 * jnp.vdot(y[1], dy)

    G = dense_gradient(x, dy) - 2 * dense_gradient(np.cos(x), dy)
    expected = np.abs(np.asarray(update.delta) * G).sum() / np.sqrt(IN * OUT)
    np.testing.assert_allclose(jax.grad(twice)(of_score()).value, expected, rtol=1e-12)


def test_evidence_of_a_dense_delta_is_that_of_the_product(x, update, dy, probe):
    def product(probe):
        return jnp.vdot(x @ effective_delta(update, probe), dy)

    expected, got = cotangents(x, update, dy, probe)[2], jax.grad(product)(probe)
    assert type(got) is type(probe)
    np.testing.assert_allclose(got.value, expected.value, rtol=1e-11, atol=1e-11)


def test_each_matrix_of_a_stack_has_a_score_of_its_own(float64, make_adapter, make_slots, x, dy):
    stack = make_adapter(IN, SLOTS, OUT, stack=(2, 3))
    slots = make_slots(["arad", "aaar", "addd", "aadd", "rada", "aaaa"])
    slots = jax.tree.map(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), slots)
    update = effective_update(stack, slots, Scaling(16))
    weights = jnp.arange(1.0, 7.0).reshape(2, 3)

    def loss(probes):
        dense = spread_probe(probes, update)
        return jnp.sum(weights * over_stack(lambda u, p: jnp.vdot(apply_update(x, u, p), dy), 2)(
            update, dense))  # fmt: skip

    got = jax.grad(loss)(of_score(stack=(2, 3))).value
    for place in np.ndindex(2, 3):
        one = jax.tree.map(lambda leaf, place=place: leaf[place], update)
        expected = weights[place] * cotangents(x, one, dy, of_score())[2].value
        np.testing.assert_allclose(got[place], expected, rtol=1e-12)


def test_only_active_lambda_and_present_matrices_have_a_gradient(
    float64, make_adapter, make_slots, x
):
    adapter = make_adapter(IN, SLOTS, OUT)

    def loss(adapter, is_advancing):
        slots = make_slots(STATES, is_advancing=is_advancing)
        return jnp.sum(jnp.sin(apply_update(x, effective_update(adapter, slots, Scaling(16)))))

    for is_advancing in (True, False):
        gradient = jax.grad(loss)(adapter, is_advancing)
        assert list(gradient.lam != 0) == [True, False, True, False]
        learning = [True, is_advancing, True, False]
        assert list((gradient.A != 0).any(axis=0)) == learning
        assert list((gradient.B != 0).any(axis=1)) == learning


def test_vmap_over_stacked_updates_is_a_loop_over_them(float64, make_adapter, make_slots, x, dy):
    update = effective_update(
        make_adapter(IN, SLOTS, OUT, stack=(2,)), make_slots(["arad", "aaar"]), Scaling(16)
    )

    def evidence(update):
        dx, d_update, score = cotangents(x, update, dy, of_score())
        return dx, d_update, score.value

    together = jax.vmap(evidence)(update)
    for layer in range(2):
        alone = evidence(jax.tree.map(lambda leaf, layer=layer: leaf[layer], update))
        np.testing.assert_allclose(together[0][layer], alone[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(together[2][layer], alone[2], rtol=1e-12)


@pytest.fixture
def narrow(x, update, dy):
    """The same with bfloat16 activations and float32 adapters."""
    wide = jax.tree.map(lambda v: v.astype(jnp.float32) if v.dtype == jnp.float64 else v, update)
    return x.astype(jnp.bfloat16), wide, dy.astype(jnp.bfloat16)


def test_bfloat16_activations_keep_their_type_and_the_adapters_theirs(narrow):
    x, update, dy = narrow
    dx, d_update, importance = cotangents(x, update, dy, of_score(jnp.float32))
    assert apply_update(x, update).dtype == dx.dtype == jnp.bfloat16
    assert {part.dtype for part in (*d_update[:4], importance.value)} == {jnp.dtype(jnp.float32)}


def test_bfloat16_activations_give_nearly_the_wide_cotangents(narrow):
    x, update, dy = narrow
    wide = (x.astype(jnp.float32), update, dy.astype(jnp.float32))
    for got, expected in zip(
        jax.tree.leaves((apply_update(x, update), cotangents(*narrow)[:2])),
        jax.tree.leaves((apply_update(*wide[:2]), cotangents(*wide)[:2])),
        strict=True,
    ):
        if expected.dtype == jnp.float32:
            # bfloat16 rounds to 2⁻⁸; a few such roundings, relative to the largest entry.
            scale = float(jnp.abs(expected).max())
            np.testing.assert_allclose(got.astype(jnp.float32), expected, atol=0.03 * scale)


def test_score_of_bfloat16_activations_is_summed_in_float32(narrow):
    x, update, dy = narrow
    G = dense_gradient(np.asarray(x, np.float64), np.asarray(dy, np.float64))
    _, _, gradient = cotangents(x, update, dy, of_matrix(jnp.float32))
    # A product of two bfloat16 is exact in float32, so only float32 sums of 15 terms round.
    np.testing.assert_allclose(gradient.value, G, rtol=1e-5, atol=1e-5)
    expected = np.abs(np.asarray(update.delta, np.float64) * G).sum() / np.sqrt(IN * OUT)
    _, _, importance = cotangents(x, update, dy, of_score(jnp.float32))
    np.testing.assert_allclose(importance.value, expected, rtol=1e-5)


@pytest.fixture
def kernel(float64):
    return jnp.asarray(np.random.default_rng(4).normal(size=(IN, OUT)))


def sum_probed(x, kernel, update, probe):
    return apply_sum(x, kernel, update, spread_probe(probe, update))


def test_product_with_the_sum_is_the_sum_of_products(x, kernel, update):
    expected = np.asarray(x) @ np.asarray(kernel) + np.asarray(apply_update(x, update))
    np.testing.assert_allclose(apply_sum(x, kernel, update), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: None, of_score, of_matrix, of_slots])
def test_cotangents_of_the_sum_are_those_of_both_products(x, kernel, update, dy, make):
    probe = make()

    def both(x, kernel, update, probe):
        return x @ kernel + apply_probed(x, update, probe)

    got = jax.vjp(sum_probed, x, kernel, update, probe)[1](dy)
    expected = jax.vjp(both, x, kernel, update, probe)[1](dy)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        if one.dtype != jax.dtypes.float0:  # of masks
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("states", "is_advancing", "computed"),
    [
        ("aar" + 13 * "d", True, 8),
        (8 * "a" + "r" + 7 * "d", True, 16),
        (8 * "a" + "r" + 7 * "d", False, 8),
        (15 * "d" + "a", False, 16),
        (7 * "a" + "r" + 24 * "d", True, 8),
        (9 * "a" + 23 * "d", False, 16),
        (16 * "a" + "r" + 15 * "d", True, 32),
        (9 * "a" + 11 * "d", False, 10),
        (7 * "d", False, 7),
    ],
)
def test_slots_left_out_of_a_wide_buffer_change_no_cotangent(
    x, kernel, dy, states, is_advancing, computed, make_adapter, make_slots
):
    slots = make_slots(states, is_advancing=is_advancing)
    update = effective_update(make_adapter(IN, len(states), OUT), slots, Scaling(16))
    # As a reserve that counts: at 1e-5 an omission would hide below the tolerance.
    ahead = slots.reserve & is_advancing
    update = update._replace(lam_hat=jnp.where(ahead, 0.5, update.lam_hat))

    def both(x, kernel, update):
        return x @ kernel + apply_update(x, update)

    (dx, _, got), (expected_dx, _, expected) = (
        jax.vjp(function, x, kernel, update)[1](dy) for function in (apply_sum, both)
    )
    assert (np.asarray(got.lam_hat) != 0).tolist() == [n < computed for n in range(len(states))]
    is_used = np.asarray(slots.applied)
    pairs = [(dx, expected_dx), (got.A, expected.A), (got.B, expected.B)]
    pairs += [(got.scale, expected.scale), (got.lam_hat[is_used], expected.lam_hat[is_used])]
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_a_probe_of_slots_asks_a_reserve_that_is_not_applied_too(
    x, kernel, dy, make_adapter, make_slots
):
    slots = make_slots(8 * "a" + "r" + 23 * "d", is_advancing=False)
    update = effective_update(make_adapter(IN, 32, OUT), slots, Scaling(16))
    present = np.asarray(slots.active | slots.reserve)
    probe = SlotProbe(jnp.zeros(32))
    (got,) = jax.vjp(partial(sum_probed, x, kernel, update), probe)[1](dy)[0]
    (expected,) = jax.vjp(partial(apply_probed, x, update), probe)[1](dy)[0]
    assert np.all(np.asarray(expected)[present])
    np.testing.assert_allclose(got[present], expected[present], rtol=1e-12, atol=1e-12)


def test_runs_that_train_together_leave_out_the_slots_that_none_applies(
    x, kernel, dy, make_adapter, make_slots
):
    adapter = make_adapter(IN, 32, OUT)
    words = [n * "a" + (32 - n) * "d" for n in (2, 9, 4)]
    updates = [effective_update(adapter, make_slots(word), Scaling(16)) for word in words]

    def cotangent(update):
        return jax.vjp(apply_sum, x, kernel, update)[1](dy)[2]

    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates)
    got = jax.vmap(cotangent)(together)
    computed = np.asarray(got.lam_hat) != 0
    assert computed.tolist() == 3 * [[n < 16 for n in range(32)]]
    for index, update in enumerate(updates):
        alone = cotangent(update)
        np.testing.assert_allclose(got.A[index], alone.A, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(got.B[index], alone.B, rtol=1e-12, atol=1e-12)
    assert "cond[" in str(jax.make_jaxpr(jax.vmap(cotangent))(together))


def test_backward_pass_of_a_scored_sum_multiplies_its_rows_twice(x, kernel, update, dy):
    """dy · (W + ΔW)ᵀ and xᵀ · dy; what else it multiplies is no larger than the kernel."""

    def backward(x, update, probe):
        return jax.vjp(sum_probed, x, kernel, update, probe)[1](dy)

    lines = jax.jit(backward).lower(x, update, of_score()).as_text().splitlines()
    of_rows = [line for line in lines if "dot_general" in line and "tensor<15x" in line]
    assert len(of_rows) == 2


@pytest.mark.parametrize(("rows", "is_cheaper"), [(5, False), (6, True)])
def test_sum_is_cheaper_when_it_multiplies_less(update, rows, is_cheaper):
    """rows · (in + out) · S against in · out · S: 5 · 24 < 143 < 6 · 24."""
    assert is_sum_cheaper(rows, update) is is_cheaper

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.core.adapter import Adapter
from increlora_jax.core.regularizer import mean_orthogonality, orthogonality

IN, SLOTS, OUT = 6, 4, 5


def by_hand(adapter, letters):
    """Both distances, over the slots that are there and no others."""
    present = [k for k, letter in enumerate(letters) if letter != "d"]
    A, B = np.asarray(adapter.A)[:, present], np.asarray(adapter.B)[present]
    identity = np.eye(len(present))
    return [np.linalg.norm(A.T @ A - identity), np.linalg.norm(B @ B.T - identity)]


@pytest.mark.parametrize("letters", ["addd", "arad", "darr", "aaaa", "dddd"])
@pytest.mark.parametrize("is_advancing", [True, False])
def test_distances_are_over_active_and_reserve_slots(
    float64, make_adapter, make_slots, letters, is_advancing
):
    adapter = make_adapter(IN, SLOTS, OUT)
    got = orthogonality(adapter, make_slots(letters, is_advancing=is_advancing))
    np.testing.assert_allclose(got, by_hand(adapter, letters), rtol=1e-13)


def test_orthonormal_components_are_at_no_distance(float64, make_slots):
    Q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(IN, SLOTS)))
    adapter = Adapter(jnp.asarray(Q), jnp.ones(SLOTS), jnp.asarray(Q.T))
    np.testing.assert_allclose(orthogonality(adapter, make_slots("arra")), [0, 0], atol=1e-14)


def test_mean_is_over_both_matrices_of_all_modules(float64, make_adapter, make_slots):
    words = {"b": "arad", "a": "aaad", "c": "addd"}
    adapters = {n: make_adapter(IN, SLOTS, OUT, seed=s) for s, n in enumerate(words)}
    slots = {name: make_slots(word) for name, word in words.items()}
    expected = np.mean([by_hand(adapters[n], word) for n, word in words.items()])
    np.testing.assert_allclose(mean_orthogonality(adapters, slots), expected, rtol=1e-13)


def test_stacked_layers_are_modules_of_their_own(float64, make_adapter, make_slots):
    words = ["arad", "aaaa", "addd"]
    stacked = make_adapter(IN, SLOTS, OUT, stack=(3,))
    single = make_adapter(IN, SLOTS, OUT, seed=7)
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(3)]
    each = [by_hand(layer, word) for layer, word in zip(layers, words, strict=True)]
    np.testing.assert_allclose(orthogonality(stacked, make_slots(words)), each, rtol=1e-13)
    # Four modules: not the mean of a mean over three and of one.
    expected = np.mean([*each, by_hand(single, "aadd")])
    got = mean_orthogonality(
        {"s": stacked, "x": single}, {"s": make_slots(words), "x": make_slots("aadd")}
    )
    np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_gradient_is_that_of_the_norm_and_zero_on_dormant_slots(float64, make_adapter, make_slots):
    adapter = make_adapter(IN, SLOTS, OUT)
    gradient = jax.grad(lambda a: orthogonality(a, make_slots("arad"))[0])(adapter)
    A = np.asarray(adapter.A)[:, :3]
    difference = A.T @ A - np.eye(3)
    expected = 2 * A @ difference / np.linalg.norm(difference)
    np.testing.assert_allclose(gradient.A[:, :3], expected, rtol=1e-12)
    assert not gradient.A[:, 3].any()
    assert not gradient.B.any()
    assert not gradient.lam.any()


@pytest.mark.parametrize("letters", ["dddd", "aaaa"])
def test_gradient_is_finite_where_the_distance_is_zero(float64, make_slots, letters):
    eye = jnp.eye(SLOTS)
    adapter = Adapter(eye, jnp.ones(SLOTS), eye)
    value, gradient = jax.value_and_grad(lambda a: orthogonality(a, make_slots(letters)).sum())(
        adapter
    )
    assert value == 0
    for leaf in gradient:
        assert not leaf.any()  # NaN would count as true

"""First values of slots, beside the equations of their papers."""

import numpy as np
import pytest

from increlora_jax.core.first_values import (
    GORA_STEP,
    activation_directions,
    compress_gradient,
    principal_directions,
    ranks_by_gradient,
    ranks_by_shares,
)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_principal_directions_are_the_best_approximation():
    kernel = draw(9, 7)
    found = principal_directions(kernel, 3)
    assert found.left.shape == (9, 3)
    left = kernel - (found.left * found.values) @ found.right
    rest = np.linalg.svd(kernel, compute_uv=False)[3:]
    np.testing.assert_allclose(np.linalg.norm(left), np.linalg.norm(rest), rtol=1e-5)


def test_activation_directions_are_the_right_singular_vectors():
    X = draw(50, 6) * np.array([5.0, 4, 3, 2, 1, 0.5])
    vectors, shares = activation_directions(X.T @ X, 4)
    _, values, V = np.linalg.svd(X, full_matrices=False)
    np.testing.assert_allclose(np.abs((vectors * V[:4].T).sum(0)), 1, rtol=1e-5)
    np.testing.assert_allclose(shares, (values**2 / (values**2).sum())[:4], rtol=1e-9)


def test_ranks_go_to_the_directions_that_explain_most():
    shares = {"a": np.array([0.9, 0.05, 0.01]), "b": np.array([0.5, 0.3, 0.1]),
              "c": np.array([0.4, 0.35, 0.2])}  # fmt: skip
    assert ranks_by_shares(shares, 2) == {"a": 1, "b": 2, "c": 3}
    assert ranks_by_shares(shares, 3) == {"a": 3, "b": 3, "c": 3}


def test_ranks_by_gradient_are_those_of_the_formula():
    importance = {"a": 6.0, "b": 1.0, "c": 3.0, "d": 0.0}
    sizes = {"a": (100, 44), "b": (100, 44), "c": (50, 50), "d": (100, 44)}
    found = ranks_by_gradient(importance, sizes, rank=8, most=32)
    budget = 8 * (3 * 12 + 10)
    assert found == {"a": round(0.6 * budget / 12), "b": 4, "c": round(0.3 * budget / 10), "d": 4}
    assert ranks_by_gradient(dict.fromkeys(sizes, 1.0), sizes, 8, most=9)["c"] == 9
    assert set(ranks_by_gradient(dict.fromkeys(sizes, 0.0), sizes, 8, most=32).values()) <= {8, 9}


@pytest.mark.parametrize("rank", [1, 4, 12])
def test_a_compressed_gradient_is_its_projection_of_the_stated_length(rank):
    A, G, scale = draw(400, rank), draw(400, 30, seed=1), 2.0
    B = compress_gradient(A, G, scale)
    step = scale * A @ B
    Q, _ = np.linalg.qr(A)
    projected = Q @ (Q.T @ G)
    xi = GORA_STEP / (scale * np.sqrt(rank / 400))
    np.testing.assert_allclose(step, -scale * xi * projected, rtol=1e-9, atol=1e-12)
    assert np.linalg.norm(step) == pytest.approx(GORA_STEP * np.linalg.norm(G), rel=0.25)


def test_a_module_without_slots_has_no_values():
    assert compress_gradient(draw(5, 0), draw(5, 3), 1.0).shape == (0, 3)
    vectors, shares = activation_directions(np.zeros((4, 4)), 2)
    assert np.isfinite(vectors).all()
    assert shares.tolist() == [0, 0]

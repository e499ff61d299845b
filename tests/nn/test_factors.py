"""Updates as factors, and their truncation over all modules, against dense matrices."""

import jax.numpy as jnp
import numpy as np
import pytest

import increlora_jax as il
from increlora_jax.nn.factors import Factors, count_energy, decompose, factors_of, shrink

RNG = np.random.default_rng(0)


def make(inputs, rank, outputs, size=1.0):
    return Factors(RNG.normal(0, size, (inputs, rank)), RNG.normal(0, size, (rank, outputs)))


@pytest.fixture
def factors():
    return {"a": make(9, 4, 7, 2.0), "b": make(6, 2, 12, 0.7), "c": make(5, 3, 5, 0.1)}


def dense(own):
    return own.left @ own.right


@pytest.mark.parametrize("shape", [(9, 4, 7), (3, 5, 7), (9, 6, 2), (4, 0, 4), (1, 1, 1)])
def test_the_thin_svd_is_that_of_the_dense_product(shape):
    own = make(*shape)
    U, values, V = decompose(own)
    np.testing.assert_allclose(U * values @ V, dense(own), atol=1e-12)
    expected = np.linalg.svd(dense(own), compute_uv=False)[: len(values)]
    np.testing.assert_allclose(values, expected, atol=1e-12)
    np.testing.assert_allclose(U.T @ U, np.eye(len(values)), atol=1e-12)


@pytest.mark.parametrize("keep", range(10))
def test_the_largest_singular_values_of_all_modules_are_kept(factors, keep):
    small = shrink(factors, keep)
    assert sum(own.rank for own in small.values()) == min(keep, 9)
    values = {name: np.linalg.svd(dense(own))[1] for name, own in factors.items()}
    pool = np.sort(np.concatenate([v[v > 1e-9] for v in values.values()]))[::-1][:keep]
    for name, own in small.items():
        kept = values[name][values[name] > 1e-9]
        expected = kept[kept >= pool[-1]] if keep else kept[:0]
        np.testing.assert_allclose(np.linalg.svd(dense(own))[1][: own.rank], expected, rtol=1e-9)


def test_equal_singular_values_are_kept_up_to_the_budget_and_no_further():
    eye = Factors(np.eye(4), np.eye(4))
    assert sum(own.rank for own in shrink({"a": eye, "b": eye}, 5).values()) == 5


def test_energy_is_the_share_of_squared_singular_values(factors):
    values = np.concatenate(
        [np.linalg.svd(dense(own), compute_uv=False) for own in factors.values()]
    )
    squares = np.sort(values**2)[::-1]
    for share in (0.1, 0.5, 0.9, 0.999, 1.0):
        keep = count_energy(factors, share)
        assert squares[:keep].sum() >= share * squares.sum() * (1 - 1e-9)
        assert keep == 1 or squares[: keep - 1].sum() < share * squares.sum()
    assert count_energy({"a": Factors(np.zeros((3, 2)), np.zeros((2, 3)))}, 0.9) == 0


def test_the_factors_of_a_model_are_what_its_merge_adds():
    params = {"w": jnp.ones((6, 4)), "v": jnp.ones((4, 8))}
    adapted = il.attach(params, max_rank=4, initial_rank=2, scaling=il.Scaling(5.0))
    skeleton, parts = il.split(adapted, lambda path: False)
    adapters = {
        path: il.Adapter(*(jnp.asarray(RNG.normal(size=x.shape), jnp.float32) for x in own))
        for path, own in parts.adapters.items()
    }
    reserve = {
        path: own._replace(reserve=own.reserve.at[3].set(True), is_advancing=jnp.array(path == "w"))
        for path, own in parts.slots.items()
    }
    parts = parts._replace(adapters=adapters, slots=reserve)
    merged, found = skeleton.merge(parts), factors_of(parts)
    assert {path: own.rank for path, own in found.items()} == {"w": 3, "v": 2}
    for path, own in found.items():
        np.testing.assert_allclose(merged[path] - params[path], dense(own), atol=1e-5)

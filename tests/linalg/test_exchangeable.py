"""XTrace and XDiag against their definitions, with a new basis for every probe left out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import linalg
from jaxnn.linalg.exchangeable import inverse_triangle, orthonormal_range

N = 14
KEY = jax.random.key(3)


def matrix(seed, kind="general", n=N):
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    values = 2.0 * 0.8 ** np.arange(n)
    if kind == "indefinite":
        return (left * values * rng.choice([-1, 1], n)) @ left.T
    return (left * values) @ right.T + (right * values) @ right.T


def basis(a, probes, without):
    """Orthonormal columns that span A times the probes that are not left out."""
    kept = [i for i in range(len(probes)) if i not in without]
    return np.linalg.qr(a @ probes[kept].T)[0]


def one_trace(a, probes, i, without):
    q, n = basis(a, probes, without), len(a)
    mu = probes[i] - q @ (q.T @ probes[i])
    dimension = n - q.shape[1]
    return np.trace(q.T @ a @ q) + dimension * (mu @ a @ mu) / (mu @ mu)


def one_diagonal(a, probes, i, without):
    q = basis(a, probes, without)
    outside = a - q @ (q.T @ a)
    return np.diag(q @ (q.T @ a)) + probes[i] * (outside @ probes[i])


def brute_force(one, a, probes):
    """The mean of the estimates T_i, its variance estimate, and what their correlation adds."""
    m = len(probes)
    total = np.stack([one(a, probes, i, {i}) for i in range(m)])
    delta = np.stack(
        [
            [total[i] - one(a, probes, i, {i, j}) if i != j else 0 * total[i] for j in range(m)]
            for i in range(m)
        ]
    )
    pairs = np.sum(delta * np.swapaxes(delta, 0, 1), axis=(0, 1)) / (m * (m - 1))
    return total.mean(0), total.var(0, ddof=1) / m, pairs


METHODS = {
    "trace": (linalg.trace, one_trace, jax.random.normal),
    "diagonal": (linalg.diagonal, one_diagonal, jax.random.rademacher),
}


@partial(jax.jit, static_argnums=(2, 3))
def estimate(A, key, name, probes):
    return METHODS[name][0](A, key, probes=probes, method="xtrace")[:2]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("count", [2, 6])
def test_it_is_the_definition_with_bases_that_leave_out_one_and_two(name, count, dtype):
    added = []
    for seed, kind in enumerate(("general", "indefinite", "general")):
        a = matrix(seed, kind).astype(dtype)
        key = jax.random.fold_in(KEY, seed)
        value, error = estimate(linalg.from_dense(jnp.asarray(a)), key, name, 2 * count)
        _, one, sampler = METHODS[name]
        probes = np.asarray(sampler(jax.random.split(key)[0], (count, N), dtype), np.float64)
        mean, variance, pairs = brute_force(one, a.astype(np.float64), probes)
        exact = np.sqrt(variance + np.maximum(pairs, 0))
        tolerance = 3000 * np.finfo(dtype).eps
        np.testing.assert_allclose(value, mean, atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(error, exact, atol=tolerance, rtol=tolerance)
        added.append(np.ravel(pairs / variance))
    added = np.concatenate(added)
    assert np.max(added) > 0.1  # the correlations count
    if name == "diagonal":
        assert np.min(added) < -0.01  # and where chance makes them negative, they do not


@pytest.mark.slow
def test_without_the_correlations_the_standard_error_is_too_small():
    """The variance of 500 repetitions, by the reported standard errors and by the usual s²/m."""
    n, m = 40, 12
    a = matrix(5, n=n) + np.diag(np.linspace(0.0, 1.0, n))
    A = linalg.from_dense(jnp.asarray(a, jnp.float32))
    keys = jax.random.split(KEY, 500)
    value, error = jax.vmap(lambda key: estimate(A, key, "trace", 2 * m))(keys)
    np.testing.assert_allclose(np.mean(error**2), np.var(value), rtol=0.2)
    draw = lambda key: jax.random.normal(jax.random.split(key)[0], (m, n), jnp.float32)
    probes = np.asarray(jax.vmap(draw)(keys[:60]), np.float64)
    usual = [np.var([one_trace(a, z, i, {i}) for i in range(m)], ddof=1) / m for z in probes]
    assert np.mean(usual) < 0.8 * np.var(value)


@pytest.mark.parametrize("rank", [0, 3, 8])
def test_an_orthonormal_basis_of_any_rank(rank, dtype):
    """Also where rows repeat, so that of most only the noise is left."""
    rng = np.random.default_rng(rank)
    images = np.zeros((8, 30))
    images[:, :rank] = rng.choice([-1.0, 1.0], (8, rank)) @ np.diag(np.arange(1.0, rank + 1))
    eps = np.finfo(dtype).eps
    for size in (1.0, 1e-25, 1e25):
        rows = jnp.asarray(size * images, dtype)
        q, r = (np.asarray(x, np.float64) for x in jax.jit(orthonormal_range)(rows, KEY))
        np.testing.assert_allclose(q @ q.T, np.eye(8), atol=20 * eps)
        np.testing.assert_array_equal(r, np.triu(r))
        scale = np.sqrt(np.mean(images**2)) or 1.0
        np.testing.assert_allclose(r.T @ q, images / scale, atol=30 * eps)


def test_triangles_are_inverted(dtype):
    rng = np.random.default_rng(0)
    r = np.triu(rng.normal(size=(9, 9))) + 3 * np.eye(9)
    found = jax.vmap(inverse_triangle)(jnp.asarray(np.stack([r, 2 * r]), dtype))
    tolerance = 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(found[0], np.linalg.inv(r), atol=tolerance)
    np.testing.assert_allclose(found[1], np.linalg.inv(r) / 2, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_estimate_is_exact_when_the_others_span_the_range(name, float64):
    """Of rank r, m = r + 1 probes are enough; with two more the standard error is 0 as well."""
    a = matrix(1)
    left, values, right = np.linalg.svd(a)
    a = (left[:, :4] * values[:4]) @ right[:4]
    exact = np.trace(a) if name == "trace" else np.diag(a)
    A = linalg.from_dense(jnp.asarray(a))
    for count in (5, 7):
        value, error = estimate(A, KEY, name, 2 * count)
        np.testing.assert_allclose(value, exact, atol=1e-11)
        if count > 5:
            assert np.max(error) <= 1e-11
    assert np.max(np.abs(estimate(A, KEY, name, 8)[0] - exact)) > 1e-3


@pytest.mark.slow
def test_derivatives_exist(float64):
    """In the matrix: of an unbiased estimate an unbiased one, here against a difference."""
    a = jnp.asarray(matrix(2))
    direction = jnp.asarray(matrix(3))
    value = lambda t: (
        linalg.trace(linalg.from_dense(a + t * direction), KEY, probes=8, method="xtrace").value
    )
    slope = jax.jit(jax.grad(value))(0.0)
    difference = (value(1e-5) - value(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-5)

"""Conjugate gradients against dense solutions and the bound on their error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import unchecked

from jaxnn import linalg


def system(seed, condition, n=30):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = np.geomspace(1.0, condition, n)
    return (q * values) @ q.T, rng.normal(size=(n, 2))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("condition", [3.0, 1e3])
def test_solutions_are_those_of_numpy(seed, condition, float64):
    a, b = system(seed, condition)
    found = jax.jit(lambda b: linalg.cg(lambda v: a @ v, b, tolerance=1e-10))(jnp.asarray(b[:, 0]))
    np.testing.assert_allclose(found.x, np.linalg.solve(a, b[:, 0]), rtol=1e-6, atol=1e-9)
    assert found.converged
    residual = np.linalg.norm(b[:, 0] - a @ found.x) / np.linalg.norm(b[:, 0])
    assert residual <= 2e-10
    assert found.residual <= 1e-10


def test_the_error_obeys_the_bound_of_the_condition_number(float64):
    a, b = system(2, 50.0)
    exact, rate = np.linalg.solve(a, b[:, 0]), (50**0.5 - 1) / (50**0.5 + 1)
    energy = lambda e: np.sqrt(e @ a @ e)
    for steps in (1, 5, 12):
        found = linalg.cg(lambda v: a @ v, jnp.asarray(b[:, 0]), tolerance=1e-14, max_steps=steps)
        assert (int(found.steps), bool(found.converged)) == (steps, False)
        assert energy(found.x - exact) <= 2 * rate**steps * energy(exact)


def test_a_good_preconditioner_saves_steps_and_changes_nothing_else(float64):
    a, b = system(3, 10.0)
    scales = np.geomspace(1.0, 1e4, len(a))
    a = np.sqrt(scales)[:, None] * a * np.sqrt(scales)
    b = jnp.asarray(b[:, 0])
    run = lambda m: linalg.cg(lambda v: a @ v, b, preconditioner=m, tolerance=1e-9, max_steps=500)
    plain, scaled = run(lambda r: r), run(lambda r: r / np.diag(a))
    np.testing.assert_allclose(scaled.x, np.linalg.solve(a, b), rtol=1e-5, atol=1e-9)
    assert scaled.converged
    assert int(scaled.steps) < 0.6 * int(plain.steps)


def test_pytrees_and_starts(float64):
    a, b = system(4, 20.0)
    rows = lambda t: jnp.concatenate([t["a"], t["b"]])
    parts = lambda v: {"a": v[:10], "b": v[10:]}
    right = parts(jnp.asarray(b[:, 0]))
    found = linalg.cg(lambda t: parts(a @ rows(t)), right, tolerance=1e-9)
    exact = np.linalg.solve(a, b[:, 0])
    np.testing.assert_allclose(rows(found.x), exact, atol=1e-7)
    again = linalg.cg(lambda t: parts(a @ rows(t)), right, start=found.x, tolerance=1e-8)
    assert (int(again.steps), bool(again.converged)) == (0, True)
    zero = linalg.cg(lambda v: a @ v, jnp.zeros(30))
    assert zero.converged
    assert np.all(zero.x == 0)


def test_a_tolerance_that_is_none():
    with unchecked(), pytest.raises(ValueError, match=r"cg\(tolerance\): got 0"):
        linalg.cg(lambda v: v, jnp.ones(2), tolerance=0.0)


@pytest.mark.parametrize("values", [(1.0, -2.0, 3.0), (-1.0, -2.0, -3.0), (0.0, 0.0, 0.0)])
def test_a_matrix_that_is_not_positive_definite_ends_unconverged(values, dtype):
    found = linalg.cg(lambda v: jnp.asarray(values, dtype) * v, jnp.ones(3, dtype))
    assert not found.converged
    assert int(found.steps) <= 2
    assert np.all(np.isfinite(found.x))
    residual = np.linalg.norm(1 - np.asarray(values) * found.x) / 3**0.5
    np.testing.assert_allclose(found.residual, residual, rtol=1e-5)


def test_a_preconditioner_that_is_not_positive_definite_ends_unconverged(dtype):
    for factor in (-1.0, 0.0, np.nan):
        bad = lambda r, factor=factor: jnp.asarray(factor, dtype) * r
        found = linalg.cg(lambda v: v, jnp.ones(3, dtype), preconditioner=bad)
        assert not found.converged
        assert int(found.steps) == 1


@pytest.mark.parametrize("size", [1e-35, 1e-15, 1.0, 1e20])
def test_the_size_of_the_right_side_changes_nothing_else(size):
    diagonal = jnp.arange(1.0, 50.0)
    b = jnp.full(49, size)
    found = linalg.cg(lambda v: diagonal * v, b, start=0.25 * b, tolerance=1e-4)
    assert found.converged
    np.testing.assert_allclose(found.x / size, 1 / diagonal, atol=2e-4)
    x = np.asarray(found.x, np.float64)
    residual = np.linalg.norm(1 - np.asarray(diagonal, np.float64) * x / size) / 7
    np.testing.assert_allclose(found.residual, residual, atol=2e-6)

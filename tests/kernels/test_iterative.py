"""Iterative kernel solutions against dense ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import unchecked

from jaxnn import kernels, nn


def rbf(a, b):
    return jnp.exp(-0.5 * jnp.sum((a[:, None] - b[None]) ** 2, axis=2))


@pytest.mark.parametrize("columns", [None, 2])
def test_solutions_are_those_of_the_dense_kernel(columns, float64):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(41, 2)))
    b = jnp.asarray(rng.normal(size=(41,) if columns is None else (41, columns)))
    options = {"rank": 15, "tolerance": 1e-9, "batch_size": 7}
    scaled = lambda a, b: 3.0 * rbf(a, b)
    solve = jax.jit(lambda x, b, n, r: kernels.solve_iteratively(
        scaled, x, b, noise=n, diag_reg=r, **options))  # fmt: skip
    found = solve(x, b, 0.01, 0.002)
    exact = np.linalg.solve(np.asarray(scaled(x, x)) + 0.016 * np.eye(41), b)
    np.testing.assert_allclose(found.x, exact, rtol=1e-5, atol=1e-6)
    assert found.converged
    assert jnp.all(jnp.isnan(solve(x, b, -0.01, 0.0).x))


@pytest.mark.slow
def test_integer_targets_and_kernels_of_half_precision():
    rng = np.random.default_rng(1)
    # Entries that bfloat16 holds exactly: whether a compiler rounds them makes no difference.
    x = jnp.asarray(rng.integers(0, 3, size=(300, 2)), "float32")
    half = lambda a, b: (a @ b.T).astype("bfloat16")
    b = jnp.asarray(rng.integers(0, 3, 300), "uint8")
    found = kernels.solve_iteratively(half, x, b, noise=1.0, rank=4, batch_size=64)
    exact = np.linalg.solve(np.asarray(half(x, x), "float64") + np.eye(300), np.asarray(b, float))
    assert (found.x.dtype, found.converged) == ("bfloat16", True)
    np.testing.assert_allclose(found.x.astype("float32"), exact, rtol=1e-2, atol=1e-2)


def test_solutions_are_differentiated_in_reverse_mode(float64):
    # By the inputs, the targets, the noise and a scale of the kernel, against the dense solution.
    rng = np.random.default_rng(4)
    x, b = jnp.asarray(rng.normal(size=(10, 2))), jnp.asarray(rng.normal(size=10))
    weights = jnp.asarray(rng.normal(size=10))

    def iterated(x, b, noise, scale):
        pairs = lambda a, b: rbf(scale * a, scale * b)
        options = {"noise": noise, "rank": 4, "batch_size": 4, "tolerance": 1e-12}
        return weights @ kernels.solve_iteratively(pairs, x, b, **options).x

    def dense(x, b, noise, scale):
        return weights @ jnp.linalg.solve(rbf(scale * x, scale * x) + noise * jnp.eye(10), b)

    found, exact = (
        jax.jit(jax.grad(f, argnums=(0, 1, 2, 3)))(x, b, 0.1, 0.8) for f in (iterated, dense)
    )
    for got, expected in zip(found, exact, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.slow
def test_the_preconditioner_saves_steps(float64):
    rng = np.random.default_rng(1)
    x, b = jnp.asarray(rng.normal(size=(60, 2))), jnp.asarray(rng.normal(size=60))
    steps = [
        int(kernels.solve_iteratively(rbf, x, b, noise=1e-3, rank=r, tolerance=1e-8).steps)
        for r in (1, 30)
    ]
    assert steps[1] < 0.4 * steps[0]


@pytest.mark.slow
def test_kernels_of_infinite_width_are_solved_without_storing_them():
    rng = np.random.default_rng(2)
    x, b = (
        jnp.asarray(rng.normal(size=(30, 5)), "float32"),
        jnp.asarray(rng.normal(size=30), "float32"),
    )
    net = nn.mlp((1, 1), parametrization="ntk")
    pairs = lambda a, b: kernels.infinite(net, a, b).ntk
    found = kernels.solve_iteratively(pairs, x, b, noise=0.1, rank=10, tolerance=1e-5)
    exact = kernels.solve(kernels.infinite(net, x).ntk, b, noise=0.1)
    np.testing.assert_allclose(found.x, exact.x, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_pivots_take_the_largest_of_what_is_left(rank, float64):
    rng = np.random.default_rng(3)
    factor = rng.normal(size=(9, 6))
    k = factor @ factor.T
    found = jax.jit(lambda k: kernels.pivoted_cholesky(lambda i: k[:, i], jnp.diagonal(k), rank))(
        jnp.asarray(k)
    )
    left = k.copy()
    for _ in range(min(rank, 6)):
        pivot = np.argmax(np.diag(left))
        left = left - np.outer(left[pivot], left[pivot]) / left[pivot, pivot]
    np.testing.assert_allclose(found @ found.T, k - left, atol=1e-9)
    assert np.all(found[:, 6:] == 0)


def test_bad_input():
    x = jnp.ones((3, 2))
    with unchecked():
        for noise, b, start in [
            (0.0, jnp.ones(3), "solve_iteratively(noise): got 0.0"),
            (-1.0, jnp.ones(3), "solve_iteratively(noise): got -1.0"),
            (1.0, jnp.ones(2), "solve_iteratively(b): got shape (2,), expected (3, ...)"),
        ]:
            with pytest.raises(ValueError, match=r": got .*, expected .*\. ") as error:
                kernels.solve_iteratively(rbf, x, b, noise=noise)
            assert str(error.value).startswith(start)
        for options, start in [
            ({"rank": 0}, "solve_iteratively(rank): got 0"),
            ({"batch_size": -1}, "solve_iteratively(batch_size): got -1"),
            ({"diag_reg": -0.1}, "solve_iteratively(diag_reg): got -0.1"),
        ]:
            with pytest.raises(ValueError, match=r": got .*, expected .*\. ") as error:
                kernels.solve_iteratively(rbf, x, jnp.ones(3), noise=1.0, **options)
            assert str(error.value).startswith(start)

"""Functions of kernels against matrix exponentials and loops, their derivatives at equal modes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from jaxnn import kernels


def kernel_of(eigenvalues, seed):
    """A kernel with these eigenvalues and a symmetric direction."""
    rng = np.random.default_rng(seed)
    n = len(eigenvalues)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    direction = rng.normal(size=(n, n))
    return q * np.array(eigenvalues) @ q.T, direction + direction.T


def flow_oracle(k, change, t, error):
    """(α(K)e, e^{-Kt}e) and their derivatives, from blocks of one matrix exponential."""
    n, zero = len(k), np.zeros((len(k), len(k)))
    pair = np.block([[k, change], [zero, k]])
    whole = expm(np.block([[-t * pair, t * np.eye(2 * n)], [np.zeros((2 * n, 4 * n))]]))
    alpha, decay = whole[: 2 * n, 2 * n :], whole[: 2 * n, : 2 * n]
    return [a @ error for m in (alpha, decay) for a in (m[:n, :n], m[:n, n:])]


EQUAL = (3.0, 1.5, 1.5, 1.5, 0.02, 0.0, 0.0)


def test_flow_has_derivatives_at_equal_and_zero_eigenvalues(dtype):
    k, change = kernel_of(EQUAL, 0)
    y = np.random.default_rng(1).normal(size=(7, 2))

    @jax.jit
    def moved(k, change, t):
        flow = lambda k: kernels.gradient_flow(k, jnp.asarray(y, dtype), t)[::2]
        value, tangent = jax.jvp(flow, (k,), (change,))
        weights = jax.tree.map(jnp.cos, value)
        gradient = jax.vjp(flow, k)[1](weights)[0]
        along = sum(jnp.vdot(a, b) for a, b in zip(weights, tangent, strict=True))
        return value, tangent, along, jnp.vdot(gradient, change)

    scale = 1e-9 if dtype == "float64" else 3e-4
    for t in (0.0, 0.4, 3.0, 70.0):
        found = moved(*(jnp.asarray(a, dtype) for a in (k, change, t)))
        alpha, alpha_change, decay, decay_change = flow_oracle(k, change, t, -y)
        for got, exact in (
            (found[0][0], y + decay),
            (found[0][1], alpha),
            (found[1][0], decay_change),
            (found[1][1], alpha_change),
        ):
            np.testing.assert_allclose(got, exact, atol=scale * (1.0 + np.abs(exact).max()))
        np.testing.assert_allclose(found[2], found[3], rtol=30 * scale, atol=30 * scale)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_descent_has_derivatives_at_equal_and_zero_eigenvalues(momentum, float64):
    k, change = kernel_of(EQUAL, 2)
    y, ridge, slope = np.random.default_rng(3).normal(size=7), 0.05, (0.7, 0.1)

    def coefficients(k, rate, mu, steps):
        options = {"learning_rate": rate, "momentum": mu, "noise": ridge}
        return kernels.gradient_descent(k, jnp.asarray(y), steps, **options).coefficients

    @jax.jit
    def moved(k, change, rate, mu, steps):
        f = lambda k, rate, mu: coefficients(k, rate, mu, steps)
        value, tangent = jax.jvp(f, (k, rate, mu), (change, *slope))
        gradients = jax.grad(lambda *a: jnp.sum(f(*a)), (0, 1, 2))(k, rate, mu)
        return value, tangent, sum(map(jnp.vdot, gradients, (change, *slope)))

    rate = 0.35
    value = velocity = value_change = velocity_change = np.zeros(7)
    for steps in range(40):
        if steps in (0, 1, 2, 13, 39):
            found = moved(k, change, rate, momentum, steps)
            np.testing.assert_allclose(found[0], -value, atol=1e-11)
            np.testing.assert_allclose(found[1], -value_change, atol=1e-9)
            np.testing.assert_allclose(found[2], -value_change.sum(), atol=1e-8)
        force = k @ value - y + ridge * value
        force_change = change @ value + k @ value_change + ridge * value_change
        velocity_change = slope[1] * velocity + momentum * velocity_change + force_change
        velocity = momentum * velocity + force
        value_change = value_change - slope[0] * velocity - rate * velocity_change
        value = value - rate * velocity


@pytest.mark.parametrize("method", ["solve", "gradient_flow", "gradient_descent"])
def test_the_limit_of_a_singular_kernel_has_a_derivative(method, float64):
    # Three equal modes and a rank of 4 of 7, which the path keeps.
    rng = np.random.default_rng(4)
    q = np.linalg.qr(rng.normal(size=(7, 7)))[0][:, :4] * np.sqrt([2.0, 2.0, 2.0, 0.3])
    move, b = rng.normal(size=(7, 4)), rng.normal(size=7)
    exact = lambda s: np.linalg.pinv((q + s * move) @ (q + s * move).T, rcond=1e-9) @ b

    def found(s):
        factor = jnp.asarray(q) + s * jnp.asarray(move)
        k = factor @ factor.T
        if method == "solve":
            return kernels.solve(k, jnp.asarray(b)).x
        if method == "gradient_flow":
            return -kernels.gradient_flow(k, jnp.asarray(b), jnp.inf).coefficients
        descent = kernels.gradient_descent(k, jnp.asarray(b), jnp.inf, learning_rate=0.1)
        return -descent.coefficients

    value, tangent = jax.jit(lambda s: jax.jvp(found, (s,), (1.0,)))(0.0)
    np.testing.assert_allclose(value, exact(0.0), atol=1e-11)
    difference = (exact(1e-6) - exact(-1e-6)) / 2e-6
    np.testing.assert_allclose(tangent, difference, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(jax.jit(jax.jacrev(found))(0.0), tangent, rtol=1e-9, atol=1e-10)


def test_definite_and_singular_solutions_are_differentiated_side_by_side(float64):
    # Under vmap both branches run: the factor of the singular one must not reach the derivative.
    # Pivots that are exactly 0, of which Cholesky's method makes NaN.
    factor = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]])
    k, b = factor @ factor.T, jnp.asarray(np.random.default_rng(5).normal(size=5))
    x = lambda noise, s: kernels.solve(s * jnp.asarray(k), b, noise=noise).x
    batch = jax.jit(jax.jacrev(jax.vmap(x, in_axes=(0, None)), argnums=1))
    singular, definite = batch(jnp.array([0.0, 0.4]), 1.0)
    np.testing.assert_allclose(singular, -np.linalg.pinv(k, rcond=1e-9) @ b, atol=1e-9)
    inverse = np.linalg.inv(k + 0.4 * np.eye(5))
    np.testing.assert_allclose(definite, -inverse @ k @ inverse @ b, atol=1e-9)


@pytest.mark.slow
def test_second_derivatives_where_eigenvalues_differ_and_nan_where_they_do_not(float64):
    y = jnp.asarray(np.random.default_rng(6).normal(size=4))

    @partial(jax.jit, static_argnames="second")
    def size(s, k, change, second=None):
        f = lambda s: jnp.sum(kernels.gradient_flow(k + s * change, y, 0.8).coefficients ** 2)
        return f(s) if second is None else second(f)(s)

    k, change = map(jnp.asarray, kernel_of((3.0, 1.4, 0.7, 0.2), 7))
    values = [size(s, k, change) for s in (-1e-4, 0.0, 1e-4)]
    expected = (values[0] - 2.0 * values[1] + values[2]) / 1e-8
    for second in (jax.hessian, lambda f: jax.grad(jax.grad(f))):
        np.testing.assert_allclose(size(0.0, k, change, second), expected, rtol=1e-5)
    k, change = map(jnp.asarray, kernel_of((3.0, 1.4, 1.4, 0.2), 7))
    assert jnp.isnan(size(0.0, k, change, jax.hessian))


def test_eigenvalues_keep_their_derivative_where_they_are_clipped():
    # The trace is linear in K, with eigenvalues of 0 or below by rounding too.
    k = jnp.zeros((3, 3)).at[0, 0].set(2.0)
    total = jax.grad(lambda k: jnp.sum(kernels.eigenmodes(k).eigenvalues))
    np.testing.assert_allclose(total(k), np.eye(3), atol=1e-6)


def test_many_steps_keep_the_digits_of_slow_modes():
    # (1 - ηλ)^k with ηλ below the rounding of 1 - ηλ, and counts beyond int32 and float32.
    k, y = jnp.diag(jnp.array([1.0, 3e-8])), jnp.ones(2)
    after = lambda steps: kernels.gradient_descent(k, y, steps, learning_rate=0.5).train
    for steps in (10**8, 10**10 + 7):
        slow = -np.expm1(steps * np.log1p(-1.5e-8))
        np.testing.assert_allclose(after(steps), [1.0, slow], rtol=1e-5)
    every = jax.jit(after)
    np.testing.assert_allclose(every(10**8), after(10**8), rtol=1e-6)
    np.testing.assert_allclose(every(1e10), after(10**10), rtol=1e-6)
    np.testing.assert_array_equal(every(jnp.inf), after(jnp.inf))
    for steps in (-1, -1.0, 2.5, jnp.nan):
        assert jnp.all(jnp.isnan(every(steps)))
    fast = kernels.gradient_descent(k, y, jnp.inf, learning_rate=2.1)
    assert jnp.all(jnp.isnan(fast.train))

"""The integrator against SciPy's, and gradient flow of losses against closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import unchecked
from scipy.integrate import solve_ivp

from jaxnn import kernels, losses


def oscillator(t, y):
    """Van der Pol's, driven."""
    xp = jnp if isinstance(y, jax.Array) else np
    x, v = y
    return xp.stack([v, 2.0 * (1.0 - x**2) * v - x + 0.5 * xp.sin(3.0 * t)])


@pytest.mark.parametrize("tolerance", [1e-5, 1e-9])
def test_solutions_are_those_of_scipy(tolerance, float64):
    start, end, y = 0.7, 9.3, np.array([1.5, -0.4])
    exact = solve_ivp(oscillator, (start, end), y, rtol=1e-12, atol=1e-12).y[:, -1]
    run = jax.jit(partial(kernels.integrate, oscillator, rtol=tolerance, atol=tolerance))
    solved = run(jnp.asarray(y), start, end)
    assert solved.finished
    assert solved.t == end
    np.testing.assert_allclose(solved.y, exact, atol=200 * tolerance)
    # As many steps as another implementation of the same method, within a factor.
    known = solve_ivp(oscillator, (start, end), y, rtol=tolerance, atol=tolerance)
    assert int(solved.steps) < 1.6 * known.nfev / 6


def test_the_order_is_five(float64):
    run = jax.jit(partial(kernels.integrate, oscillator), static_argnames=("rtol", "atol"))
    y = jnp.array([1.5, -0.4])
    loose, tight = (run(y, 0.0, 5.0, rtol=r, atol=r) for r in (1e-5, 1e-10))
    # Errors per step fall as h⁵: 1e5 times smaller ones take 10 times as many steps.
    assert 6 < tight.steps / loose.steps < 14


def test_an_interrupted_run_goes_on_to_the_same_end(float64):
    y, run = jnp.array([1.5, -0.4]), jax.jit(partial(kernels.integrate, oscillator))
    whole = run(y, 0.0, 6.0)
    part = jax.jit(partial(kernels.integrate, oscillator, max_steps=17))(y, 0.0, 6.0)
    assert (bool(part.finished), int(part.steps)) == (False, 17)
    assert 0 < part.t < 6
    rest = run(part.y, part.t, 6.0, first_step=part.step_size)
    np.testing.assert_array_equal(rest.y, whole.y)
    assert part.steps + rest.steps == whole.steps


def test_a_field_that_ends_in_nothing_is_not_finished():
    # dy/dt = y² from 1 is infinite at t = 1.
    run = partial(kernels.integrate, lambda t, y: y**2, max_steps=500)
    solved = jax.jit(run)(jnp.ones(1), 0.0, 2.0)
    assert not solved.finished
    assert solved.t <= 1.01
    still = kernels.integrate(lambda t, y: jnp.zeros_like(y), jnp.zeros(2), 0.0, 1.0)
    assert still.finished
    assert np.all(still.y == 0)


@pytest.mark.parametrize("full", [False, True])
def test_the_squared_error_flows_as_its_closed_form(full, float64):
    rng = np.random.default_rng(0)
    j = rng.normal(size=(4, 2, 9)) / 2
    theta = np.einsum("nap,mbp->nmab", j, j)
    theta = jnp.asarray(theta if full else theta[..., 0, 0])
    y, f0 = (jnp.asarray(rng.normal(size=(4, 2))) for _ in range(2))
    half = lambda f, y: 0.5 * jnp.sum((f - y) ** 2, axis=1)
    flow = partial(kernels.gradient_flow_of_loss, loss=half, rtol=1e-9)
    solved = jax.jit(lambda k: flow(k, y=y, t=1.3, outputs=f0))(theta)
    exact = kernels.gradient_flow(theta, y, 1.3, outputs=f0).train
    np.testing.assert_allclose(solved.y, exact, atol=1e-8)
    assert solved.finished


def test_cross_entropy_flows_as_scipy_says(float64):
    rng = np.random.default_rng(1)
    theta = rng.normal(size=(3, 5))
    theta, labels, f0 = theta @ theta.T, np.array([0, 2, 1]), rng.normal(size=(3, 3))

    def field(t, f):
        f = f.reshape(3, 3)
        p = np.exp(f - f.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return -(theta @ (p - np.eye(3)[labels])).ravel()

    exact = solve_ivp(field, (0, 3.0), f0.ravel(), rtol=1e-11, atol=1e-11).y[:, -1]
    solved = kernels.gradient_flow_of_loss(
        *(jnp.asarray(theta), losses.softmax_cross_entropy, jnp.asarray(labels), 3.0),
        outputs=jnp.asarray(f0),
        rtol=1e-9,
    )
    np.testing.assert_allclose(solved.y.ravel(), exact, atol=1e-7)


def test_tolerances_that_are_none():
    with unchecked(), pytest.raises(ValueError, match=r"integrate\(rtol\): got 0"):
        kernels.integrate(oscillator, jnp.ones(2), 0.0, 1.0, rtol=0.0)

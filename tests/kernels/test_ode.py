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


# One program for all tolerances, starts and ends.
driven = jax.jit(partial(kernels.integrate, oscillator))
START = np.array([1.5, -0.4])


@pytest.mark.parametrize("tolerance", [1e-5, 1e-9])
@pytest.mark.parametrize(("start", "end"), [(0.7, 9.3), (-2.0, -2.9), (40.0, 38.7)])
def test_solutions_are_those_of_scipy(start, end, tolerance, float64):
    exact = solve_ivp(oscillator, (start, end), START, rtol=1e-12, atol=1e-12).y[:, -1]
    solved = driven(jnp.asarray(START), start, end, rtol=tolerance, atol=tolerance)
    assert solved.finished
    assert solved.t == end
    np.testing.assert_allclose(solved.y, exact, atol=200 * tolerance, rtol=200 * tolerance)
    # As many steps as another implementation of the same method, within a factor.
    known = solve_ivp(oscillator, (start, end), START, rtol=tolerance, atol=tolerance)
    assert int(solved.steps) < 1.6 * known.nfev / 6


def test_the_order_is_five(float64):
    y = jnp.asarray(START)
    loose, tight = (driven(y, 0.0, 5.0, rtol=r, atol=r) for r in (1e-5, 1e-10))
    # Errors per step fall as h⁵: 1e5 times smaller ones take 10 times as many steps.
    assert 6 < tight.steps / loose.steps < 14


@pytest.mark.parametrize("end", [6.0, -1.5])
def test_an_interrupted_run_goes_on_to_the_same_end(end, float64):
    y, options = jnp.asarray(START), {"rtol": 1e-6, "atol": 1e-9}
    whole = driven(y, 0.0, end, **options)
    part = jax.jit(partial(kernels.integrate, oscillator, max_steps=17))(y, 0.0, end, **options)
    assert (bool(part.finished), int(part.steps)) == (False, 17)
    assert 0 < part.t / end < 1
    rest = driven(part.y, part.t, end, first_step=part.step_size, **options)
    np.testing.assert_array_equal(rest.y, whole.y)
    assert part.steps + rest.steps == whole.steps


def test_times_without_digits_are_refused_or_unfinished():
    y = jnp.ones(1)
    with unchecked():
        for start, end in [(1e8, 1e8 + 1), (1e8, 1e8 + 100), (-1e8 - 1, -1e8), (1e8 + 1, 1e8)]:
            with pytest.raises(ValueError, match=r"integrate\(start, end\): got .*, expected "):
                kernels.integrate(lambda t, y: -y, y, start, end)
        for start, end in [(0.0, np.inf), (np.nan, 1.0), (0.0, np.ones(2))]:
            with pytest.raises(ValueError, match="expected a finite number"):
                kernels.integrate(lambda t, y: -y, y, start, end)
    decay = jax.jit(lambda start, end: kernels.integrate(lambda t, y: -y, y, start, end))
    for start, end in [(1e8, 1e8 + 16), (0.0, np.nan), (1e4, np.inf)]:
        assert not decay(start, end).finished
    # Steps of 1e-2 at a time of 1e6, where float32 has a spacing of 0.06.
    fast = jax.jit(lambda t: kernels.integrate(lambda t, y: -1e3 * y, y, t, t + 20))
    assert not fast(1e6).finished
    assert fast(10.0).finished
    # Where the distance has digits, the distance between the rounded times is what counts.
    late = decay(1e4, 1e4 + 2.5)
    np.testing.assert_allclose(late.y, np.exp(-2.5), rtol=1e-3)
    assert late.finished


def test_states_of_integers_and_of_half_precision():
    for dtype, state in [("int32", "float32"), ("bool", "float32"), ("bfloat16", "bfloat16")]:
        solved = kernels.integrate(lambda t, y: -y, jnp.ones(2, dtype), 0.0, 1.0, rtol=1e-3)
        assert (solved.y.dtype, solved.finished) == (state, True)
        np.testing.assert_allclose(solved.y.astype("float32"), np.exp(-1.0), rtol=4e-3)


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


def test_test_outputs_and_momentum_follow_the_equations(float64):
    # scipy's solution of f'' = -γf' - Θ∂L/∂f for training and test outputs together.
    rng = np.random.default_rng(2)
    j = rng.normal(size=(5, 2, 7)) / 2
    full = np.einsum("nap,mbp->nmab", j, j)
    labels, f0, v0 = np.array([1, 0, 1]), rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    flat = np.einsum("nap,mbp->namb", j, j).reshape(10, 10)[:, :6]

    def force(f):
        p = np.exp(f[:3]) / np.exp(f[:3]).sum(1, keepdims=True)
        return -(flat @ (p - np.eye(2)[labels]).ravel()).reshape(5, 2)

    def field(t, state):
        f, v = state.reshape(2, 5, 2)
        return np.stack([v, force(f) - 0.7 * v]).ravel()

    tight = {"rtol": 1e-11, "atol": 1e-11}
    exact = solve_ivp(field, (0, 2.0), np.stack([f0, v0]).ravel(), **tight)
    f, v = exact.y[:, -1].reshape(2, 5, 2)
    flow = partial(
        kernels.gradient_flow_of_loss, jnp.asarray(full[:3, :3]), losses.softmax_cross_entropy
    )
    options = {"cross": jnp.asarray(full[3:, :3]), "rtol": 1e-9}
    halves = lambda a: (jnp.asarray(a[:3]), jnp.asarray(a[3:]))
    (outputs, test_outputs), (velocity, test_velocity) = halves(f0), halves(v0)
    found = flow(
        jnp.asarray(labels), 2.0, outputs=outputs, test_outputs=test_outputs,
        velocity=velocity, test_velocity=test_velocity, friction=0.7, **options,
    )  # fmt: skip
    for got, expected in zip((*found[:1], *found[5:]), (f[:3], f[3:], v[:3], v[3:]), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-7)
    plain = solve_ivp(lambda t, f: force(f.reshape(5, 2)).ravel(), (0, 2.0), f0.ravel(), **tight)
    found = flow(jnp.asarray(labels), 2.0, outputs=outputs, test_outputs=test_outputs, **options)
    np.testing.assert_allclose(found.test, plain.y[:, -1].reshape(5, 2)[3:], atol=1e-7)
    assert found.velocity is None


@pytest.mark.slow
def test_friction_is_that_of_momentum_at_small_learning_rates(float64):
    k, y, rate, momentum = jnp.array([[2.0, 0.5], [0.5, 1.0]]), jnp.array([1.0, -1.0]), 1e-6, 0.998
    steps = 3000
    descent = kernels.gradient_descent(k, y, steps, learning_rate=rate, momentum=momentum)
    flow = kernels.gradient_flow_of_loss(
        k, losses.half_squared_error, y, steps * rate**0.5,
        outputs=jnp.zeros(2), friction=(1 - momentum) / rate**0.5,
    )  # fmt: skip
    np.testing.assert_allclose(flow.y, descent.train, rtol=3e-3)


def test_flows_that_do_not_fit():
    k, y, f = jnp.eye(3), jnp.zeros((3, 1)), jnp.ones((3, 1))
    flow = partial(kernels.gradient_flow_of_loss, k, losses.half_squared_error)
    broadcast = lambda f, y: (f - y[None]) ** 2
    with unchecked():
        for action, start in [
            (lambda: flow(y, -1.0, outputs=f), "gradient_flow_of_loss(t): got -1.0"),
            (lambda: flow(y, jnp.inf, outputs=f), "gradient_flow_of_loss(t): got inf"),
            (lambda: flow(y, 1.0, outputs=f[:2]), "gradient_flow_of_loss(outputs, cross"),
            (
                lambda: flow(y, 1.0, outputs=f, cross=jnp.ones((2, 3)), test_outputs=f),
                "gradient_flow_of_loss(outputs, cross",
            ),
            (lambda: flow(y, 1.0, outputs=f, velocity=f), "gradient_flow_of_loss(friction): got N"),
            (
                lambda: kernels.gradient_flow_of_loss(k, broadcast, y[:, 0], 1.0, outputs=f),
                "gradient_flow_of_loss(loss): got values of shape (3, 3)",
            ),
            (
                lambda: kernels.integrate(lambda t, y: y[:1], jnp.ones(2), 0.0, 1.0),
                "integrate(field): got dy/dt of shape (1,)",
            ),
            (
                lambda: kernels.integrate(oscillator, jnp.ones(2), 0.0, 1.0, first_step=-0.1),
                "integrate(first_step): got -0.1",
            ),
        ]:
            with pytest.raises(ValueError, match=r": got .*, expected .*\. ") as error:
                action()
            assert str(error.value).startswith(start)


def test_tolerances_that_are_none():
    with unchecked(), pytest.raises(ValueError, match=r"integrate\(rtol\): got 0"):
        kernels.integrate(oscillator, jnp.ones(2), 0.0, 1.0, rtol=0.0)

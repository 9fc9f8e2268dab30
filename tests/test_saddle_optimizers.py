"""Optimizers at and near saddle points, against NumPy and the algorithms in print."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from oracles import flat, unchecked

from jaxnn import losses, tree
from jaxnn.optimizers import (
    gradient_descent,
    perturbation,
    perturbed_gradient_descent,
    saddle_free_newton,
)
from jaxnn.training import fit


def double_well(p):
    """Minima at (0, ±1), where it is -1/4, and a strict saddle at 0."""
    return 0.5 * p[0] ** 2 + 0.25 * p[1] ** 4 - 0.5 * p[1] ** 2


def descend(optimizer, objective, params, steps):
    """The params before each update and after the last, the updates, and the last state."""

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(objective)(params)
        updates, state = optimizer.update(grads, state, params, value=value, value_fn=objective)
        return (tree.add(params, updates), state), (params, updates)

    start = (params, optimizer.init(params))
    (end, state), (path, updates) = jax.jit(lambda start: jax.lax.scan(step, start, length=steps))(
        start
    )
    return jnp.concatenate([path, end[None]]), updates, state


def test_descent_stays_at_a_strict_saddle_and_perturbed_descent_leaves(dtype):
    saddle = jnp.zeros(2, dtype)
    plain = gradient_descent(0.1)
    updates, _ = plain.update(jax.grad(double_well)(saddle), plain.init(saddle), saddle)
    assert np.all(np.asarray(updates) == 0)

    @jax.vmap
    def ends(key):
        optimizer = perturbed_gradient_descent(0.1, 1e-3, 1e-4, 60, key=key)
        return descend(optimizer, double_well, saddle, 250)[0][-1]

    found = np.abs(ends(jax.random.split(jax.random.key(0), 8)))
    np.testing.assert_allclose(found, np.tile([0.0, 1.0], (8, 1)), atol=2e-3)


def test_perturbations_come_when_they_are_due_and_descent_is_descent(float64):
    eta, radius, threshold, wait = 0.1, 1e-3, 1e-2, 7
    key = jax.random.key(1)
    optimizer = perturbed_gradient_descent(eta, radius, threshold, wait, key=key)
    path, updates, state = descend(optimizer, double_well, jnp.array([0.5, 0.05]), 400)
    path, updates = np.asarray(path), np.asarray(updates)
    gradients = np.stack([path[:-1, 0], path[:-1, 1] ** 3 - path[:-1, 1]], axis=1)
    small = np.linalg.norm(gradients, axis=1) <= threshold
    since, perturbed = wait + 1, []
    for t, g in enumerate(gradients):  # algorithm 2, with the perturbations that were drawn
        if small[t] and since > wait:
            perturbed.append(t)
            assert 0 < np.linalg.norm(updates[t]) <= radius
            since = 0
        else:
            np.testing.assert_allclose(updates[t], -eta * g, rtol=1e-12, atol=1e-15)
            since += 1
    assert len(perturbed) > 10
    assert small.sum() > len(perturbed)  # some small gradients came too early
    assert (int(state.t), int(state.since)) == (400, since)
    assert len({tuple(updates[t]) for t in perturbed}) == len(perturbed)


@pytest.mark.slow
def test_perturbations_are_uniform_in_the_ball(float64):
    like, radius = {"a": jnp.zeros(2), "b": jnp.zeros((1, 1))}, 0.3

    def drawn(key):
        optimizer = perturbed_gradient_descent(0.1, radius, 1.0, 5, key=key)
        return optimizer.update(like, optimizer.init(like))[0]

    draws = jax.vmap(drawn)(jax.random.split(jax.random.key(2), 2000))
    points = np.concatenate([np.asarray(leaf).reshape(2000, -1) for leaf in draws.values()], 1)
    share = (np.linalg.norm(points, axis=1) / radius) ** 3
    assert scipy.stats.kstest(share, "uniform").pvalue > 0.01
    # A coordinate of a point that is uniform in the unit ball of three dimensions: ¾(1 - z²).
    cdf = lambda z: (2.0 + 3.0 * z - z**3) / 4.0
    for column in points.T / radius:
        assert scipy.stats.kstest(column, cdf).pvalue > 0.01


def test_a_perturbation_that_leads_nowhere_ends_the_run_where_it_was_made(dtype):
    optimizer = perturbed_gradient_descent(0.1, 1e-3, 1e-2, 20, 1e-4, key=jax.random.key(3))
    path, updates, state = descend(optimizer, double_well, jnp.asarray([0.01, 1.3], dtype), 200)
    path, updates = np.asarray(path), np.asarray(updates)
    first = next(
        t
        for t in range(200)
        if np.linalg.norm(updates[t]) > 0 and np.allclose(path[t], path[-1], rtol=0, atol=0)
    )
    assert state.finished
    np.testing.assert_array_equal(
        path[first + 22 :], np.broadcast_to(path[first], (179 - first, 2))
    )
    assert not np.array_equal(path[first + 21], path[first])  # 20 steps of descent in between
    gradient = np.hypot(path[first, 0], path[first, 1] ** 3 - path[first, 1])
    assert gradient <= 1e-2
    escaped = descend(optimizer, double_well, jnp.asarray([0.0, 0.01], dtype), 21)[2]
    assert not escaped.finished


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("wait", "steps"), [(0.5, 1), (3.0, 3), (3.25, 4), (2**31 - 1, 2**31 - 2), (10.0**12, None)]
)
def test_a_waiting_time_is_rounded_up_and_can_be_exceeded(wait, steps, traced):
    still = jnp.zeros(2)

    def run(wait, since):
        optimizer = perturbed_gradient_descent(0.1, 1e-3, 1e-4, wait, key=jax.random.key(0))
        state = optimizer.init(still)
        update = lambda since: optimizer.update(still, state._replace(since=since))
        return state.since, jax.vmap(lambda s: tree.norm(update(s)[0]))(since)

    if steps is None:
        steps = 2**31 - 2
    since = jnp.array([steps, steps + 1], jnp.int32)
    if traced and wait < 2**31:
        first, sizes = jax.jit(run)(jnp.asarray(wait, float if wait < 9 else jnp.int32), since)
    else:
        first, sizes = run(wait, since)
    assert first == steps + 1
    assert sizes[0] == 0 < sizes[1]


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_values_are_compared_in_more_digits_than_the_params_have(scale):
    still = jnp.zeros(2, jnp.bfloat16)
    optimizer = perturbed_gradient_descent(0.1, 1e-3, 1e-4, 2, 1e-3, key=jax.random.key(0))
    state = optimizer.init(still)
    for value in (100.0, 99.99, 99.98, 100.0 - 0.1 * scale, 99.8):
        updates, state = optimizer.update(still, state, still, value=jnp.float32(value))
    assert state.finished == (scale < 0)  # it fell by 0.1, which bfloat16 does not see
    assert updates.dtype == jnp.bfloat16


def test_the_constants_of_the_theorem():
    d, ell, rho, epsilon, delta, delta_f, c = 50, 4.0, 2.0, 1e-2, 0.05, 3.0, 0.25
    found = perturbation(d, ell=ell, rho=rho, epsilon=epsilon, delta=delta, delta_f=delta_f, c=c)
    chi = 3 * np.log(d * ell * delta_f / (c * epsilon**2 * delta))
    assert found.learning_rate == c / ell
    assert found.radius * ell == pytest.approx(found.gradient_threshold)
    assert found.gradient_threshold == pytest.approx(c**0.5 / chi**2 * epsilon)
    assert found.function_threshold == pytest.approx(c / chi**3 * (epsilon**3 / rho) ** 0.5)
    assert 0 <= found.waiting_time - chi * ell / (c**2 * (rho * epsilon) ** 0.5) < 1
    few = perturbation(1, ell=1.0, rho=1.0, epsilon=1.0, delta=0.5, delta_f=1.0, c=1.0)
    assert few.gradient_threshold == pytest.approx(1 / 12**2)  # the logarithm is at least 4
    optimizer = perturbed_gradient_descent(*few, key=jax.random.key(0))
    assert optimizer.init(jnp.zeros(1)).anchor is not None
    careful = {"epsilon": 1e-4, "delta": 0.1, "delta_f": 1.0, "c": 1e-3}
    forever = perturbation(10**6, ell=1.0, rho=1.0, **careful)
    assert forever.waiting_time > 2**31
    optimizer = perturbed_gradient_descent(*forever, key=jax.random.key(0))
    assert optimizer.init(jnp.ones(2)).since == 2**31 - 1
    for name in ("ell", "rho", "epsilon", "delta", "delta_f", "c"):
        values = {"ell": 1.0, "rho": 1.0, "epsilon": 0.1, "delta": 0.1, "delta_f": 1.0, "c": 0.1}
        bad = 2.0 if name in ("epsilon", "delta", "c") else 0.0
        with pytest.raises(ValueError, match=rf"perturbation\({name}\): got"):
            perturbation(3, **(values | {name: bad}))


def curved(seed, values, dtype):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))[0]
    a = (q * np.asarray(values)) @ q.T
    return a, lambda p: 0.5 * p @ jnp.asarray(a, dtype) @ p


@pytest.mark.slow
def test_saddle_free_newton_is_newton_on_a_convex_quadratic(dtype):
    a, form = curved(0, [0.5, 3.0, 1.0, 2.0, 5.0], dtype)
    b = np.random.default_rng(1).normal(size=5)
    joined = lambda p: jnp.concatenate([p["u"], p["v"].ravel()])
    objective = lambda p: form(joined(p)) - joined(p) @ jnp.asarray(b, dtype)
    params = {"u": jnp.ones(1, dtype), "v": jnp.full((2, 2), -0.5, dtype)}
    for damping in (0.0, (1.0, 0.0, 0.1)) if dtype == "float64" else ((1.0, 0.0, 0.1),):
        optimizer = saddle_free_newton(rank=20, damping=damping)
        grads = jax.grad(objective)(params)
        updates, state = optimizer.update(grads, optimizer.init(params), params, value_fn=objective)
        end = flat(tree.add(params, updates))
        np.testing.assert_allclose(end, np.linalg.solve(a, b), rtol=2e-5, atol=2e-5)
        assert state.damping == 0.0


def test_a_step_is_that_of_the_absolute_hessian_in_the_krylov_space(float64):
    a, objective = curved(2, [-2.0, 3.0, -0.5, 1.0, 4.0, -1.0], jnp.float64)
    params = np.random.default_rng(3).normal(size=6)
    g = a @ params
    for rank, damping in ((1, 0.0), (3, 0.2), (6, 0.0)):
        krylov = np.stack([np.linalg.matrix_power(a, k) @ g for k in range(rank)], axis=1)
        q = np.linalg.qr(krylov)[0]
        theta, u = np.linalg.eigh(q.T @ a @ q)
        divisors = np.abs(theta) + damping * np.abs(theta).max()
        expected = -0.3 * q @ u @ ((u.T @ q.T @ g) / divisors)
        optimizer = saddle_free_newton(0.3, rank=rank, damping=damping)
        state, start = optimizer.init(params), jnp.asarray(params)
        updates, _ = optimizer.update(jnp.asarray(g), state, start, value_fn=objective)
        np.testing.assert_allclose(updates, expected, rtol=1e-9)


def test_saddle_free_newton_leaves_the_saddle_that_newton_converges_to(dtype):
    start = jnp.asarray([1.0, 1e-3], dtype)
    for damping in (0.0, (0.0, 1e-2, 1.0)):
        optimizer = saddle_free_newton(rank=2, damping=damping)
        path, _, _ = descend(optimizer, double_well, start, 25)
        np.testing.assert_allclose(path[-1], [0.0, 1.0], atol=1e-3)
    newton = np.array([1.0, 1e-3])
    for _ in range(25):
        newton = newton - np.array(
            [1.0, (newton[1] ** 3 - newton[1]) / (3 * newton[1] ** 2 - 1)]
        ) * [newton[0], 1]
    np.testing.assert_allclose(newton, 0.0, atol=1e-12)


@pytest.mark.slow
def test_the_damping_with_the_lowest_objective_is_taken(float64):
    objective = lambda p: jnp.where(jnp.abs(p[0]) < 1.0, jnp.cosh(3.0 * p[0]), jnp.nan)
    start = jnp.array([0.9])
    dampings = (0.0, 0.1, 1.0, 10.0)
    g, h = 3 * np.sinh(2.7), 9 * np.cosh(2.7)
    for rate, expected in ((2.0, 0.0), (4.0, 1.0), (8.0, 1.0)):  # at 8 the first two are NaN
        optimizer = saddle_free_newton(rate, damping=dampings)
        _, state = optimizer.update(
            jax.grad(objective)(start), optimizer.init(start), start, value_fn=objective
        )
        ends = np.abs(0.9 - rate * g / (h * (1 + np.array(dampings))))
        assert dampings[np.argmin(np.where(ends < 1, ends, np.inf))] == expected
        assert float(state.damping) == expected


@pytest.mark.parametrize("kind", [list, np.array, jnp.array])
def test_an_array_of_dampings_is_several(kind):
    objective = lambda p: 2.0 * p[0] ** 2 - p[1] ** 2
    start = jnp.array([1.0, 0.25])
    grads = jax.grad(objective)(start)
    several, negative = kind([0.0, 1.0, 0.5]), kind([0.5, -0.5])

    @jax.jit
    def step(start, more):
        optimizer = saddle_free_newton(rank=2, damping=several)
        with unchecked(), pytest.raises(ValueError, match=r"saddle_free_newton\(damping\)"):
            saddle_free_newton(damping=negative)
        traced = saddle_free_newton(rank=2, damping=more)
        told = {"value_fn": objective}
        state = optimizer.init(start)
        return [o.update(grads, state, start, **told) for o in (optimizer, traced)]

    for updates, state in step(start, jnp.array([1.0, 0.0])):
        np.testing.assert_allclose(updates, [-1.0, 0.25], rtol=1e-5)
        assert (state.damping.shape, state.damping) == ((), 0.0)


def test_on_a_linear_piece_the_damping_is_the_curvature(dtype):
    objective = lambda p: 3.0 * p[0] - p[1]
    start = jnp.ones(2, dtype)
    for damping, expected in ((0.5, 0.5), ((2.0, 0.0, 4.0), 2.0), (0.0, np.inf)):
        optimizer = saddle_free_newton(0.25, damping=damping)
        grads, state = jax.grad(objective)(start), optimizer.init(start)
        updates, state = optimizer.update(grads, state, start, value_fn=objective)
        np.testing.assert_allclose(updates, np.array([-3.0, 1.0]) * 0.25 / expected, rtol=1e-6)
    path, _, _ = descend(saddle_free_newton(), objective, start, 3)
    assert np.all(np.diff([objective(p) for p in path]) < 0)


def test_damped_directions_are_kept_however_flat(dtype):
    eps = float(jnp.finfo(dtype).eps)
    largest, flat_ = 1.0, 0.25 * eps
    objective = lambda p: 0.5 * largest * p[0] ** 2 + 0.5 * flat_ * p[1] ** 2
    start = jnp.asarray([eps, 1.0], dtype)
    for damping in (1.5 * eps, 1e-2):  # a part of 2 eps is what 0 leaves out
        optimizer = saddle_free_newton(rank=2, damping=damping)
        grads, state = jax.grad(objective)(start), optimizer.init(start)
        step, _ = optimizer.update(grads, state, start, value_fn=objective)
        expected = -flat_ / (flat_ + damping)
        np.testing.assert_allclose(step[1], expected, rtol=0.5)
    optimizer = saddle_free_newton(rank=2, damping=0.0)
    step, _ = optimizer.update(grads, state, start, value_fn=objective)
    assert abs(step[1]) < 1e-3


def test_no_gradient_no_step_and_directions_without_curvature_are_left_out(dtype):
    optimizer = saddle_free_newton(damping=0.0)
    start = jnp.asarray([1.0, 2.0, 3.0], dtype)
    objective = lambda p: 2.0 * p[0] ** 2
    state = optimizer.init(start)
    still, _ = optimizer.update(jnp.zeros(3, dtype), state, start, value_fn=objective)
    assert np.all(np.asarray(still) == 0)
    step, _ = optimizer.update(jax.grad(objective)(start), state, start, value_fn=objective)
    np.testing.assert_allclose(step, [-1.0, 0.0, 0.0], atol=1e-6)


@pytest.mark.slow
def test_fit_passes_what_they_need(float64):
    x = jnp.linspace(-1.0, 1.0, 8)[:, None]
    f = lambda p, x: jnp.tanh(x @ p["w"]) @ p["b"]
    params = {"w": jnp.zeros((1, 1)), "b": jnp.zeros((1, 1))}  # a strict saddle, as tanh(0) = 0
    data = x, 0.5 * jnp.tanh(3.0 * x)
    loss = losses.half_squared_error
    pushed = perturbed_gradient_descent(0.3, 1e-2, 1e-3, 100, 1e-6, key=jax.random.key(0))
    start = float(fit(f, params, loss, data, gradient_descent(0.3), steps=200).history["loss"][-1])
    found = fit(f, params, loss, data, pushed, steps=200)
    assert start == pytest.approx(float(jnp.mean(0.5 * data[1] ** 2)))
    assert found.history["loss"][-1] < 0.2 * start
    off = tree.add(params, {"w": jnp.full((1, 1), 1e-3), "b": jnp.full((1, 1), 2e-3)})
    found = fit(f, off, loss, data, saddle_free_newton(), steps=30)
    assert found.history["loss"][-1] < 1e-8


def test_bad_input():
    key, ones = jax.random.key(0), jnp.ones(2)
    with unchecked():
        for arguments, name in (
            ((-0.1, 1.0, 1.0, 1), "learning_rate"),
            ((0.1, -1.0, 1.0, 1), "radius"),
            ((0.1, 1.0, -1.0, 1), "gradient_threshold"),
            ((0.1, 1.0, 1.0, -1), "waiting_time"),
            ((0.1, 1.0, 1.0, 1, -1.0), "function_threshold"),
        ):
            with pytest.raises(ValueError, match=rf"\({name}\): got -"):
                perturbed_gradient_descent(*arguments, key=key)
        for options, name in (
            ({"learning_rate": -1.0}, "learning_rate"),
            ({"rank": 0}, "rank"),
            ({"damping": -1.0}, "damping"),
            ({"damping": (0.1, -1.0)}, "damping"),
            ({"damping": np.array([-0.5, -0.5])}, "damping"),
            ({"damping": np.zeros(0)}, "damping"),
            ({"damping": jnp.ones((2, 1))}, "damping"),
            ({"damping": [[0.1, 0.2]]}, "damping"),
            ({"damping": [jnp.ones(2)]}, "damping"),
            ({"damping": ()}, "damping"),
        ):
            with pytest.raises(ValueError, match=rf"saddle_free_newton\({name}\)"):
                saddle_free_newton(**options)
    tested = perturbed_gradient_descent(0.1, 1.0, 1.0, 1, 0.1, key=key)
    with pytest.raises(ValueError, match="update: value"):
        tested.update(ones, tested.init(ones), ones)
    newton = saddle_free_newton()
    with pytest.raises(ValueError, match="update: params"):
        newton.update(ones, newton.init(ones))
    with pytest.raises(ValueError, match="update: value_fn"):
        newton.update(ones, newton.init(ones), ones)
    for optimizer in (tested, newton):
        with pytest.raises(ValueError, match="int32"):
            optimizer.init(jnp.ones(2, jnp.int32))

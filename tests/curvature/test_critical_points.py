"""Searches for critical points against those that are known, and places that only look like one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from landscapes import Autoencoder, himmelblau, himmelblau_points, rotated
from oracles import unchecked

from jaxnn.curvature import newton_steps
from jaxnn.curvature.critical_points import find_critical_point, gradient_tolerance

METHODS = ("newton", "gradient_norm", "saddle_free")
ANY_KIND = METHODS[:2]


def search_all(objective, starts, *args, **options):
    one = lambda start: find_critical_point(objective, start, *args, **options)
    return jax.jit(jax.vmap(one))(starts)


def distinct(points, digits):
    return np.unique(np.round(np.asarray(points, float), digits), axis=0)


@pytest.mark.parametrize("method", METHODS)
def test_all_critical_points_of_himmelblau_are_found(method, dtype):
    starts = jax.random.uniform(jax.random.key(1), (120, 2), dtype, -5.0, 5.0)
    found = search_all(himmelblau, starts, method=method)
    assert np.all(found.converged)
    assert not np.any(found.gradient_flat)
    points, hessians = himmelblau_points()
    assert len(points) == 9
    if method == "saddle_free":
        points = points[np.linalg.eigvalsh(hessians)[:, 0] > 0]
        assert len(points) == 4
    apart = np.linalg.norm(np.asarray(found.params, float)[:, None] - points, axis=2)
    assert np.all(apart.min(1) < (1e-11 if dtype == "float64" else 1e-5))
    assert set(apart.argmin(1)) == set(range(len(points)))
    np.testing.assert_allclose(found.value, jax.vmap(himmelblau)(found.params), 1e-6, 1e-11)
    assert np.max(found.steps) < 30


def test_newton_is_exact_on_a_quadratic_of_any_index(dtype):
    objective = lambda p, a, b: 0.5 * p @ a @ p - b @ p
    sizes, b = np.array([1.0, 2.0, 0.5, 3.0, 1.5]), np.random.default_rng(0).normal(size=5)
    for index in range(6):
        a = rotated(index, np.where(np.arange(5) < index, -sizes, sizes))
        args = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
        found = find_critical_point(objective, jnp.zeros(5, dtype), *args, radius=100.0)
        assert (int(found.steps), bool(found.converged)) == (1, True)
        np.testing.assert_allclose(found.params, np.linalg.solve(a, b), rtol=2e-4)


def test_the_step_is_the_pseudo_inverses_where_the_hessian_is_singular(float64):
    a = rotated(3, [2.0, -1.0, 0.0, 0.0, 3.0])
    b = a @ np.random.default_rng(1).normal(size=5)
    objective = lambda p: 0.5 * p @ jnp.asarray(a) @ p - jnp.asarray(b) @ p
    start = np.random.default_rng(2).normal(size=5)
    found = find_critical_point(objective, jnp.asarray(start), radius=100.0)
    shortest = start + np.linalg.pinv(a, rcond=1e-10) @ (b - a @ start)
    np.testing.assert_allclose(found.params, shortest, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_larger_problem_is_solved_by_products(method, float64):
    n, rng = 40, np.random.default_rng(4)
    a = rotated(5, np.r_[-np.linspace(0.5, 2, 7), np.linspace(0.5, 4, n - 7)])
    b = rng.normal(size=n)
    objective = lambda p, a: 0.5 * p["x"] @ a @ p["x"] - b @ p["x"] + 0.1 * jnp.sum(p["x"] ** 4)
    start = {"x": jnp.asarray(rng.normal(size=n))}
    found = find_critical_point(objective, start, jnp.asarray(a), method=method, products=n - 1)
    x = np.asarray(found.params["x"])
    gradient = a @ x - b + 0.4 * x**3
    assert found.converged
    assert np.linalg.norm(gradient) < 1e-10
    np.testing.assert_allclose(found.gradient_norm, np.linalg.norm(gradient), atol=1e-13)
    assert int(found.steps) < 50
    if method == "saddle_free":
        assert np.linalg.eigvalsh(a + np.diag(1.2 * x**2))[0] > 0


def without_critical_points(p, c, turn):
    x, *rest = turn @ p
    return (
        c["x"] * x
        + c["x3"] * x**3
        + c["sin"] * jnp.sin(x)
        + c["y2"] * rest[0] ** 2
        + rest[1] ** 4
        + rest[1] ** 2
    )


FLAT = {  # the coefficients, and the least ‖∇L‖: at x = 0, at odd multiples of π, everywhere
    "inflection": ({"x": 1.0, "x3": 0.3, "sin": 0.0, "y2": -1.0}, 1.0),
    "tilted sine": ({"x": 1.3, "x3": 0.0, "sin": 1.0, "y2": 2.0}, 0.3),
    "slope": ({"x": -2.0, "x3": 0.0, "sin": 0.0, "y2": 0.5}, 2.0),
}


@pytest.mark.parametrize("method", METHODS)
def test_gradient_flat_points_are_recognized_and_never_reported(method, dtype):
    coefficients = jax.tree.map(
        lambda *c: jnp.asarray(c, dtype), *(coefficients for coefficients, _ in FLAT.values())
    )
    turn = jnp.asarray(np.linalg.qr(np.random.default_rng(6).normal(size=(3, 3)))[0], dtype)
    starts = 3.0 * jax.random.normal(jax.random.key(2), (40, 3), dtype)
    search = lambda start, c: find_critical_point(
        without_critical_points, start, c, turn, method=method
    )
    found = jax.jit(jax.vmap(jax.vmap(search, (0, None)), (None, 0)))(starts, coefficients)
    assert not np.any(found.converged)
    if method != "saddle_free":  # which follows such objectives down to -∞
        assert np.all(found.gradient_flat)
        assert np.max(found.steps) < 100
        assert np.all(found.flatness <= 1e-2)
        least = np.array([[size] for _, size in FLAT.values()])
        np.testing.assert_allclose(found.gradient_norm, np.broadcast_to(least, (3, 40)), rtol=1e-3)


def test_a_search_that_runs_off_downhill_is_not_at_a_flat_point(float64):
    # ‖Hg‖/‖g‖² = 2/x falls with x, but the steps grow as fast.
    found = find_critical_point(lambda p: p[0] ** 3, jnp.array([-9.0]), method="saddle_free")
    assert found.params[0] < -1e3
    assert not found.converged
    assert not found.gradient_flat


@pytest.mark.slow
def test_a_slow_but_true_critical_point_is_not_called_flat(float64):
    # Newton's steps shrink the gradient along x by a constant alone, and H is nearly 0 there.
    starts = jax.random.normal(jax.random.key(3), (40, 2))
    for method in ANY_KIND:
        found = search_all(lambda p: p[0] ** 4 + p[1] ** 2, starts, method=method)
        assert np.all(found.converged)
        assert not np.any(found.gradient_flat)


@pytest.mark.slow
def test_convergence_is_quadratic_also_where_critical_points_are_not_isolated(float64):
    circle = lambda p: (jnp.sum(p**2) - 1.0) ** 2
    for objective, method in ((himmelblau, "newton"), *((circle, m) for m in ANY_KIND)):
        found = find_critical_point(objective, jnp.array([1.9, 2.4]), method=method)
        sizes = np.asarray(found.gradient_norms)
        steps = int(found.steps)
        assert found.converged
        assert np.all(np.isfinite(sizes[: steps + 1]))
        assert np.all(sizes[steps + 1 :] == sizes[steps])
        assert sizes[steps] == found.gradient_norm
        late = sizes[: steps + 1][sizes[: steps + 1] < 1e-1]
        assert np.all(late[1:] < 10 * late[:-1] ** 2 + 1e-13)


@pytest.mark.slow
def test_a_small_network_is_at_rest_to_1e_10_from_random_starts(float64):
    net = Autoencoder(7, width=2)
    keys = jax.random.split(jax.random.key(4), 2)
    starts = {
        "W1": 0.4 * jax.random.normal(keys[0], (24, 2, 5)),
        "W2": 0.4 * jax.random.normal(keys[1], (24, 5, 2)),
    }
    values = np.array([net.value_and_index(s)[0] for s in net.subsets()])
    for method in ("gradient_norm", "saddle_free"):
        found = search_all(net.loss, starts, jnp.asarray(net.covariance), method=method)
        ok = np.asarray(found.converged)
        assert ok.mean() > 0.9
        assert np.all(np.asarray(found.gradient_norm)[ok] <= 1e-10)
        w1, w2 = (np.asarray(found.params[name])[ok] for name in ("W1", "W2"))
        for pair in zip(w1, w2, strict=True):
            assert net.gradient_norm(*pair) < 1e-10
        apart = np.abs(np.asarray(found.value)[ok, None] - values)
        assert apart.min(1).max() < 1e-10
        if method == "saddle_free":
            assert set(apart.argmin(1)) == {int(values.argmin())}
        else:
            assert len(set(apart.argmin(1))) > 2


def test_steps_that_leave_the_domain_are_not_made(float64):
    objective = lambda p, scale: scale * p["x"] - jnp.log(p["x"])
    for method in ("newton", "saddle_free"):
        found = find_critical_point(objective, {"x": jnp.array(9.0)}, 2.0, method=method)
        assert found.converged
        assert float(found.params["x"]) == pytest.approx(0.5, abs=1e-9)
    nowhere = jax.jit(lambda x: find_critical_point(objective, {"x": x}, 2.0))(jnp.array(-1.0))
    assert not nowhere.converged
    assert nowhere.stuck
    assert int(nowhere.steps) == 0
    with pytest.raises(ValueError, match="not finite"):
        find_critical_point(objective, {"x": jnp.array(0.0)}, 2.0)


@pytest.mark.slow
def test_one_search_is_one_of_many(float64):
    starts = jax.random.normal(jax.random.key(5), (3, 2))
    many = search_all(himmelblau, starts, tolerance=1e-8, max_steps=7)
    for i, start in enumerate(starts):
        one = find_critical_point(himmelblau, start, tolerance=1e-8, max_steps=7)
        assert int(one.steps) == int(many.steps[i])
        assert one.gradient_norms.shape == (8,)
        np.testing.assert_allclose(one.params, many.params[i], rtol=1e-10)


def quartic(w, size):
    return size * (jnp.sum(jnp.array([1.0, 2.0, 3.0]) * (w - 1) ** 2) + w[0] ** 4)


@pytest.mark.parametrize(
    ("method", "products"), [*((method, 200) for method in METHODS), ("gradient_norm", 2)]
)
def test_the_unit_of_the_objective_does_not_matter(method, products):
    # Where squares of ‖∇L‖ are beyond float32, and an ‖∇L‖ of 0 would be no root.
    search = lambda size: find_critical_point(
        *(quartic, jnp.zeros(3), jnp.asarray(size)),
        **{"tolerance": 1e-5 * size, "method": method, "products": products},
    )
    usual = search(1.0)
    for size in (1e-24, 1e20):
        found = search(size)
        assert found.converged
        assert found.gradient_norms[0] == pytest.approx(size * 2 * np.sqrt(14), rel=1e-5)
        np.testing.assert_allclose(found.params, usual.params, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_single_product_for_each_system_leads_on(method, float64):
    objective = lambda w: jnp.sum(jnp.array([1.0, 2.0, 3.0]) * (w - 1) ** 2)
    found = find_critical_point(objective, jnp.zeros(3), method=method, products=1)
    assert found.converged
    np.testing.assert_allclose(found.params, 1.0, atol=1e-9)


def test_newton_solves_no_second_system_where_its_step_is_short_enough(float64):
    calls, matrix, g = [], jnp.diag(jnp.array([1.0, -2.0])), jnp.array([3.0, 4.0])
    hessian = newton_steps.decomposed(matrix)

    def damped(g, damping):
        jax.debug.callback(lambda: calls.append(1))
        return hessian.damped(g, damping)

    for radius, times in ((10.0, 0), (0.1, 1)):
        calls.clear()
        step = newton_steps.newton(hessian._replace(damped=damped), g, jnp.asarray(radius))
        jax.effects_barrier()
        assert len(calls) == times
        if times == 0:
            np.testing.assert_allclose(step.s, [-3.0, 2.0], rtol=1e-12)
        else:
            assert 0 < np.linalg.norm(step.s) <= radius


def test_params_far_from_zero_have_steps_that_they_notice():
    far = lambda w: 1e-3 * jnp.sum((w - 1e7) ** 2)
    found = find_critical_point(far, jnp.full(3, 1.1e7))
    assert found.converged
    assert not found.stuck
    np.testing.assert_allclose(found.params, 1e7, rtol=1e-6)
    short = find_critical_point(far, jnp.full(3, 1.1e7), radius=1.0)
    assert (int(short.steps), bool(short.converged), bool(short.stuck)) == (0, False, True)


@pytest.mark.parametrize("start", [1e-8, 1e-5, 1e-4])
def test_a_small_radius_makes_no_flat_point_of_a_root(start):
    bowl = lambda w: 0.5 * jnp.sum(w**2)
    found = find_critical_point(bowl, jnp.full(3, start), radius=1e-8)
    assert found.converged
    assert not found.gradient_flat


def test_limits_and_tolerances(float64):
    start = jnp.array([4.0, 3.0])
    cut = find_critical_point(himmelblau, start, max_steps=1)
    assert (int(cut.steps), bool(cut.converged)) == (1, False)
    loose = find_critical_point(himmelblau, start, tolerance=1.0)
    assert loose.converged
    assert 1e-3 < loose.gradient_norm <= 1.0
    for dtype in (np.float32, np.float64):
        expected = np.finfo(dtype).eps ** (2 / 3)
        assert gradient_tolerance(start.astype(dtype)) == pytest.approx(expected)
    at_rest = find_critical_point(lambda p: jnp.sum(p**2), jnp.zeros(2))
    assert (int(at_rest.steps), bool(at_rest.converged)) == (0, True)
    assert not at_rest.gradient_flat
    assert not any(found.stuck for found in (at_rest, cut, loose))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "descent"}, r"\(method\): got 'descent'"),
        ({"max_steps": 0}, r"\(max_steps\): got 0"),
        ({"products": 0}, r"\(products\): got 0"),
        ({"tolerance": 0.0}, r"\(tolerance\): got 0"),
        ({"radius": -1.0}, r"\(radius\): got -1"),
    ],
)
def test_bad_options(options, message):
    with unchecked(), pytest.raises(ValueError, match=message):
        find_critical_point(himmelblau, jnp.ones(2), **options)


def test_bad_objectives():
    with pytest.raises(ValueError, match="scalar"):
        find_critical_point(lambda p: p, jnp.ones(2))
    with pytest.raises(ValueError, match="no parameters"):
        find_critical_point(lambda p: jnp.zeros(()), ())


def test_a_search_that_succeeds_has_no_nan_in_it():
    start = jnp.zeros(3)
    with jax.debug_nans(True):
        found = find_critical_point(lambda q: jnp.sum((q - 1) ** 2), start, max_steps=5)
    np.testing.assert_array_equal(found.params, 1)
    assert (bool(found.converged), bool(found.gradient_flat)) == (True, False)
    assert found.flatness == np.inf

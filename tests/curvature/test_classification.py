"""Kinds, indices and error bars of critical points whose Hessians are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from landscapes import Autoencoder, himmelblau, himmelblau_points, rotated
from oracles import flat, unchecked

from jaxnn.curvature.classification import classify, escape_direction, inertia, kinds
from jaxnn.curvature.critical_points import find_critical_point


def quadratic(p, a):
    return 0.5 * p @ a @ p


def test_quadratic_forms_of_every_index(dtype):
    n, sizes = 6, np.array([0.3, 4.0, 1.0, 2.5, 0.7, 1.6])
    for index in range(n + 1):
        values = np.where(np.arange(n) < index, -sizes, sizes)
        a = rotated(index, values)
        found = classify(quadratic, jnp.zeros(n, dtype), jnp.asarray(a, dtype))
        kind = {0: "minimum", n: "maximum"}.get(index, "saddle")
        assert (found.kind, found.index, found.nullity) == (kind, index, 0)
        assert found.index_exact
        assert found.strict_saddle == (index > 0)
        exact = np.linalg.eigvalsh(a)
        assert np.all(np.abs(found.eigenvalues - exact) <= found.errors)
        assert np.all(found.errors < 100 * np.finfo(dtype).eps * 4.0)
        assert found.tolerance == pytest.approx(4.0 * np.finfo(dtype).eps ** 0.5, rel=1e-3)


MONOMIALS = ((2, 0), (0, 2), (1, 1), (3, 0), (1, 2), (4, 0), (0, 6))
DEGENERATE = {  # their coefficients
    "cubic": (0, 1, 0, 1, 0, 0, 0),
    "quartic": (0, 1, 0, 0, 0, 1, 0),
    "monkey saddle": (0, 0, 0, 1, -3, 0, 0),
    "sixth power": (-1, 0, 0, 0, 0, 0, -1),
    "valley": (1, 1, -2, 0, 0, 0, 0),
    "constant": (0, 0, 0, 0, 0, 0, 0),
}


def polynomial(p, c):
    return sum(c[i] * p[0] ** j * p[1] ** k for i, (j, k) in enumerate(MONOMIALS))


@pytest.mark.slow
def test_semidefinite_hessians_decide_nothing_also_at_points_found_by_search(dtype):
    def end(start, c):
        found = find_critical_point(polynomial, start, c)
        return found.converged, inertia(polynomial, found.params, c)

    starts = jax.random.normal(jax.random.key(0), (50, 2), dtype).at[0].set(0.0)
    c = jnp.asarray(list(DEGENERATE.values()), dtype)
    converged, found = jax.jit(jax.vmap(jax.vmap(end, (0, None)), (None, 0)))(starts, c)
    assert np.all(converged)
    # Near such a point no eigenvalue is 0, but Newton's step on from there shows it could be.
    assert set(kinds(found).ravel()) == {"degenerate"}
    assert found.zero[:, 0].tolist() == [1, 1, 2, 1, 1, 2]


def test_the_kinds_of_himmelblau(dtype):
    points, hessians = himmelblau_points()
    negative = (np.linalg.eigvalsh(hessians) < 0).sum(1)
    assert np.bincount(negative).tolist() == [4, 4, 1]
    options = {} if dtype == "float64" else {"max_gradient_norm": 1e-2}
    found = jax.vmap(lambda p: inertia(himmelblau, p, **options))(jnp.asarray(points, dtype))
    names = np.array(["minimum", "saddle", "maximum"])
    assert kinds(found).tolist() == names[negative].tolist()
    assert found.negative.tolist() == negative.tolist()
    exact = np.linalg.eigvalsh(hessians)
    assert np.all(np.abs(np.asarray(found.eigenvalues) - exact) <= np.asarray(found.errors))


def test_a_point_that_is_not_critical():
    found = classify(himmelblau, jnp.array([3.1, 2.0]))
    assert found.kind == "not critical"
    assert not found.strict_saddle
    assert found.gradient_norm > 1.0
    assert classify(himmelblau, jnp.array([3.1, 2.0]), max_gradient_norm=100.0).kind == "minimum"


def test_indices_of_the_linear_autoencoder(float64):
    net = Autoencoder(0, width=3)
    subsets = net.subsets()
    assert len(subsets) == 26
    points = [net.point(subset, seed) for seed, subset in enumerate(subsets)]
    points = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    covariance = jnp.asarray(net.covariance)
    found = jax.jit(jax.vmap(lambda p: inertia(net.loss, p, covariance)))(points)
    value, index = np.array([net.value_and_index(subset) for subset in subsets]).T
    np.testing.assert_allclose(found.value, value, rtol=1e-12)
    assert found.negative.tolist() == index.tolist()
    # Only the origin has no orbit of the same loss; the best subset is the global minimum, where
    # the orbit makes the Hessian semidefinite.
    kind = dict(zip(subsets, kinds(found).tolist(), strict=True))
    assert kind.pop((0, 1, 2)) == "degenerate"
    assert set(kind.values()) == {"saddle"}


@pytest.mark.slow
@pytest.mark.parametrize("products", [7, 200])
def test_errors_bound_the_change_on_the_way_to_the_critical_point(products, float64):
    a = jnp.asarray(rotated(1, [3.0, -2.0, 0.5, 1.0] * 2))
    objective = lambda p: 0.5 * p @ a @ p + p[0] ** 2 * p[1] - p[2] ** 3
    exact = np.linalg.eigvalsh(a)
    for seed, distance in enumerate((1e-6, 1e-4, 1e-2)):
        off = distance * np.random.default_rng(seed).normal(size=8)
        options = {"max_gradient_norm": 1.0, "ends": 3, "products": products}
        found = classify(objective, jnp.asarray(off), **options)
        ends = exact if products == 200 else np.r_[exact[:3], exact[-3:]]
        errors = np.abs(found.eigenvalues - ends)
        assert np.all(errors <= 1.1 * found.errors)
        assert errors.max() > 0.1 * found.errors.max()  # and they are no wild overestimates
        assert (found.kind, found.index, found.index_exact) == ("saddle", 2, True)


def test_the_ends_of_a_larger_spectrum(float64):
    n, ends = 60, 4
    for index, expected in ((0, "minimum"), (2, "saddle"), (9, "saddle"), (n, "maximum")):
        sizes = np.geomspace(0.2, 5.0, n)
        values = np.where(np.arange(n) < index, -sizes, sizes)
        a = rotated(index, values)
        found = classify(quadratic, jnp.zeros(n), jnp.asarray(a), ends=ends, products=n - 1)
        exact = np.sort(values)
        outer = np.r_[exact[:ends], exact[-ends:]]
        assert found.kind == expected
        assert np.all(np.abs(found.eigenvalues - outer) <= found.errors)
        assert found.index == np.sum(outer < 0)
        assert found.index_exact == (index < ends)
        assert found.index == index or not found.index_exact


@pytest.mark.parametrize("products", [7, 100])
def test_an_index_is_exact_where_no_negative_one_can_be_hidden(products, float64):
    # The lowest eigenvalue is not clear, as it changes fast: the others of the lower end are.
    d = jnp.asarray([-5.0, -4.0, -3.0, -2.0, *[1.0] * 26])
    objective = lambda w: 0.5 * jnp.sum(d * w**2) + 1e3 * w[0] ** 3 - 1e-2 * w[0]
    options = {"max_gradient_norm": 1.0, "products": products}
    found = classify(objective, jnp.zeros(30), ends=2, **options)
    assert found.complete == found.index_exact == (products == 100)
    assert (found.index, found.nullity) == (3 if found.complete else 1, 1)


def test_counts_are_lower_bounds_where_the_spectrum_is_not_complete(float64):
    d = jnp.concatenate([-jnp.ones(3), jnp.zeros(28), jnp.ones(7)])
    found = classify(lambda w: jnp.sum(d * w**2), jnp.zeros(38), ends=3, products=10)
    assert (found.index, found.nullity, found.complete, found.index_exact) == (3, 0, False, False)
    found = classify(lambda w: jnp.sum(d * w**2), jnp.zeros(38))
    assert (found.index, found.nullity, found.complete, found.index_exact) == (3, 28, True, True)


@pytest.mark.parametrize("ends", [4, 5])
def test_ends_that_meet_are_the_whole_spectrum(ends, float64):
    found = classify(lambda w: -jnp.sum(w**2), jnp.zeros(10), products=5, ends=ends)
    assert (found.kind, found.index) == ("maximum", min(2 * ends, 10))
    assert found.complete == found.index_exact == (ends >= 5)


@pytest.mark.parametrize("products", [2, 200])
@pytest.mark.parametrize("size", [1e20, 1e-24])
def test_squares_beyond_the_floats_are_not_taken(products, size):
    objective = lambda w: 0.5 * size * jnp.sum(jnp.array([1.0, -2.0, 3.0]) * w**2)
    options = {"ends": 1, "products": products, "max_gradient_norm": 1e-30}
    for w, kind in ((jnp.zeros(3), "saddle"), (jnp.full(3, 1e-3), "not critical")):
        found = classify(objective, w, **options)
        assert (found.kind, found.index) == (kind, 1)
        norm = size * np.sqrt(14) * float(w[0])
        assert found.gradient_norm == pytest.approx(norm, rel=1e-5)
        assert 0 < np.max(found.errors) < 1e-5 * size


@pytest.mark.parametrize("products", [20, 200])
def test_the_escape_direction_is_the_lowest_eigenvector_and_leads_down(products, dtype):
    a, b = rotated(2, [2.0, -3.0, 1.0, -0.5]), np.array([0.3, -0.2, 0.1, 0.4])
    cut = lambda tree: jnp.concatenate([tree["u"], tree["v"]])
    objective = lambda p, a, b: 0.5 * cut(p) @ a @ cut(p) + b @ cut(p)
    start = {"u": jnp.zeros(1, dtype), "v": jnp.zeros(3, dtype)}
    lowest = np.linalg.eigh(a)[1][:, 0]
    for sign in (1.0, -1.0):
        args = jnp.asarray(a, dtype), jnp.asarray(sign * b, dtype)
        found = jax.jit(lambda *args: escape_direction(objective, start, *args))(*args)
        direction = flat(found.direction)
        np.testing.assert_allclose(direction, -np.sign(sign * b @ lowest) * lowest, atol=1e-5)
        assert direction @ (sign * b) <= 0
        assert float(found.eigenvalue) == pytest.approx(-3.0, rel=1e-5)
        assert float(found.residual) < 1e-4


@pytest.mark.slow
def test_a_run_along_the_escape_direction_falls_as_its_eigenvalue_says(float64):
    net = Autoencoder(3, width=2)
    covariance, point = jnp.asarray(net.covariance), net.point((1, 4), seed=0)
    point = jax.tree.map(jnp.asarray, point)
    found = escape_direction(net.loss, point, covariance)
    step = jax.tree.map(lambda p, d: p + 1e-4 * d, point, found.direction)
    fall = float(net.loss(step, covariance) - net.loss(point, covariance))
    assert fall == pytest.approx(0.5 * 1e-8 * float(found.eigenvalue), rel=1e-3)
    assert found.eigenvalue < 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, r"\(tolerance\): got 0"),
        ({"tolerance": 2.0}, r"\(tolerance\): got 2"),
        ({"max_gradient_norm": -1.0}, r"\(max_gradient_norm\): got -1"),
        ({"ends": 0}, r"\(ends\): got 0"),
        ({"products": 0}, r"\(products\): got 0"),
    ],
)
def test_bad_options(options, message):
    with unchecked(), pytest.raises(ValueError, match=message):
        classify(himmelblau, jnp.ones(2), **options)
    with pytest.raises(ValueError, match="scalar"):
        classify(lambda p: p, jnp.ones(2))
    with pytest.raises(ValueError, match="not finite"):
        escape_direction(lambda p: jnp.sqrt(p[0]), jnp.zeros(1))

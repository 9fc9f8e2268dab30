"""Spectral densities against Lanczos, smearing and log-determinants by NumPy in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import flat, unchecked
from scipy.integrate import trapezoid

from jaxnn import linalg
from jaxnn.linalg import SpectralDensity
from jaxnn.linalg.quadrature import rule

KEY = jax.random.key(7)


def symmetric(seed, values):
    n = len(values)
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    return (q * np.asarray(values)) @ q.T


def operator(matrix, dtype="float32"):
    return linalg.from_dense(jnp.asarray(matrix, dtype), structure="symmetric")


@partial(jax.jit, static_argnums=(2, 3))
def spectrum(A, key, steps, probes):
    return linalg.spectral_density(A, key, steps=steps, probes=probes)


def signs(key, probes, n, dtype):
    keys = jax.random.split(key, probes)
    rows = jnp.stack([jax.random.rademacher(k, (n,), dtype) for k in keys])
    return np.asarray(rows, np.float64)


def lanczos_rule(a, z, steps):
    """Nodes and weights by Lanczos in float64, every vector orthogonalized against all twice."""
    basis, alpha, beta = [z / np.linalg.norm(z)], [], []
    for _ in range(steps):
        w = a @ basis[-1]
        alpha.append(basis[-1] @ w)
        for _ in range(2):
            w = w - np.array(basis).T @ (np.array(basis) @ w)
        beta.append(np.linalg.norm(w))
        basis.append(w / beta[-1])
    nodes, u = np.linalg.eigh(np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1))
    return nodes, u[0] ** 2


VALUES = np.concatenate([np.linspace(-1.0, 2.0, 27), [4.0, 6.0, 9.0]])


def test_nodes_and_weights_are_those_of_lanczos_on_the_same_probe(dtype):
    for seed in (0, 1):
        a = symmetric(seed, VALUES).astype(dtype)
        key = jax.random.fold_in(KEY, seed)
        found = spectrum(operator(a, dtype), key, 8, 4)
        a = a.astype(np.float64)
        for i, z in enumerate(signs(key, 4, 30, dtype)):
            nodes, weights = lanczos_rule(a, z, 8)
            tolerance = 200 * np.finfo(dtype).eps
            np.testing.assert_allclose(found.nodes[i], nodes, atol=9 * tolerance)
            np.testing.assert_allclose(found.weights[i], weights, atol=tolerance)
            moments = np.array([z @ a @ z, z @ a @ a @ z]) / 30
            np.testing.assert_allclose(found.moments[i], moments, atol=9 * tolerance)
        np.testing.assert_allclose(np.sum(found.weights, axis=1), 1.0, rtol=tolerance)
        assert np.all(np.diff(found.nodes, axis=1) >= 0)
        assert (int(found.size), int(found.products), bool(found.symmetric)) == (30, 40, True)


def test_polynomials_are_exact_below_twice_the_steps(float64):
    a = symmetric(2, VALUES)
    found = spectrum(operator(a, "float64"), KEY, 4, 5)
    z = signs(KEY, 5, 30, "float64")
    powers = [np.sum(found.weights * found.nodes**p, axis=1) for p in range(9)]
    exact = [np.sum(z * (z @ np.linalg.matrix_power(a, p)), axis=1) / 30 for p in range(9)]
    np.testing.assert_allclose(powers[:8], exact[:8], rtol=1e-10)
    assert np.max(np.abs(powers[8] / exact[8] - 1)) > 1e-6
    # and so are traces of them, with the standard error of the probes
    trace = found.trace(lambda x: x**3)
    samples = 30 * exact[3]
    np.testing.assert_allclose(trace.value, np.mean(samples), rtol=1e-10)
    np.testing.assert_allclose(trace.standard_error, np.std(samples, ddof=1) / 5**0.5, rtol=1e-10)
    assert trace.probes == 5
    np.testing.assert_allclose(found.trace().value, 30 * np.mean(exact[1]), rtol=1e-10)


def test_as_many_steps_as_dimensions_give_the_measure_itself(float64):
    values = np.array([-3.0, -1.0, 0.5, 2.0, 2.5, 7.0])
    q = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]
    found = spectrum(operator((q * values) @ q.T, "float64"), KEY, 6, 3)
    for i, z in enumerate(signs(KEY, 3, 6, "float64")):
        np.testing.assert_allclose(found.nodes[i], values, atol=1e-9)
        np.testing.assert_allclose(found.weights[i], (q.T @ z) ** 2 / 6, atol=1e-9)
    smaller = spectrum(operator(np.diag([5.0]), "float64"), KEY, 1, 3)
    np.testing.assert_allclose(smaller.nodes, 5.0)
    assert smaller.self_check() < 1e-14


@pytest.mark.slow
def test_the_top_eigenvalue_has_no_copies_in_float32():
    """A large outlier is found early; without orthogonalization it would come again and again."""
    values = np.concatenate([np.random.default_rng(0).normal(size=118), [30.0, 1000.0]])
    a = symmetric(4, values)
    found = spectrum(operator(a), KEY, 60, 3)
    assert np.all(np.sum(found.nodes > 20.0, axis=1) == 2)
    np.testing.assert_allclose(found.nodes[:, -1], 1000.0, rtol=1e-6)
    np.testing.assert_allclose(found.nodes[:, -2], 30.0, rtol=1e-4)
    top = np.linalg.eigh(a)[1][:, -1]
    exact = (signs(KEY, 3, 120, "float32") @ top) ** 2 / 120
    np.testing.assert_allclose(found.weights[:, -1], exact, rtol=1e-3)
    assert found.self_check() < 1e-5


BROKEN = {
    "twice the identity": (2.0 * np.eye(20), {2.0: 1.0}),
    "zero": (np.zeros((20, 20)), {0.0: 1.0}),
    "a projection": (symmetric(5, np.r_[np.ones(4), np.zeros(16)]), {0.0: None, 1.0: None}),
    "three values": (
        symmetric(6, np.r_[-np.ones(9), 3 * np.ones(6), 4 * np.ones(5)]),
        {-1.0: None, 3.0: None, 4.0: None},
    ),
    "small": (1e-20 * symmetric(6, np.r_[np.ones(9), 3 * np.ones(11)]), {1e-20: None, 3e-20: None}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_krylov_spaces_that_end_early(name, dtype):
    matrix, measure = BROKEN[name]
    found = spectrum(operator(matrix, dtype), KEY, 10, 3)
    theta, u = np.linalg.eigh(matrix)
    size = np.max(np.abs(matrix)) or 1.0
    eps = np.finfo(dtype).eps
    for i, z in enumerate(signs(KEY, 3, 20, dtype)):
        nodes, weights = np.asarray(found.nodes[i]), np.asarray(found.weights[i])
        assert np.all(np.isfinite(nodes))
        assert np.all(weights >= 0)
        np.testing.assert_allclose(np.sum(weights), 1.0, rtol=20 * eps)
        assert np.all(np.diff(nodes) >= 0)
        # All weight is on the eigenvalues, and as much on each as the probe has there.
        for value in measure:
            near = np.abs(nodes - value) < 1e-4 * size
            exact = np.sum((u.T @ z)[np.abs(theta - value) < 1e-4 * size] ** 2) / 20
            np.testing.assert_allclose(np.sum(weights[near]), exact, atol=100 * eps)
        there = weights > 0
        assert np.sum(there) <= len(measure) + 2  # a rounding or two
        np.testing.assert_array_equal(nodes[~there], np.max(nodes[there]))
    assert found.self_check() <= 50 * eps
    exact = 20 * np.mean(np.sum(found.weights * np.exp(-found.nodes), axis=1))
    np.testing.assert_allclose(found.trace(lambda x: jnp.exp(-x)).value, exact, rtol=20 * eps)


def test_of_a_smaller_rank_the_rest_is_left_out(dtype):
    theta, omega = rule(
        jnp.asarray([0.0, 0.0, 0.0, 0.0], dtype),
        jnp.asarray([1.0, 0.0, 0.0], dtype),
        jnp.array(2, jnp.int32),
    )
    np.testing.assert_allclose(theta, [-1.0, 1.0, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(omega, [0.5, 0.5, 0.0, 0.0], rtol=1e-6)
    moments = jnp.asarray([[0.0, 1.0]], dtype)
    found = SpectralDensity(theta[None], omega[None], moments, 4, 1, jnp.array(True))
    # Of a function that is infinite at the node of weight 0, and nowhere else.
    infinite = lambda x: jnp.where((omega[None] == 0) & (x == theta[None]), jnp.inf, x**2)
    np.testing.assert_allclose(found.trace(infinite).value, 4.0, rtol=1e-6)


@pytest.mark.slow
def test_the_self_check_sees_a_wrong_declaration(dtype):
    a = symmetric(0, VALUES)
    skew = np.triu(np.random.default_rng(1).normal(size=(30, 30)), 1)
    skew = (skew - skew.T) / 30**0.5
    for steps in (1, 12):
        assert spectrum(operator(a, dtype), KEY, steps, 4).self_check() < 50 * np.finfo(dtype).eps
    for wrong in (a + skew, skew, a + 0.05 * skew):
        assert spectrum(operator(wrong, dtype), KEY, 12, 4).self_check() > 1e-4
    broken = spectrum(operator(np.full((30, 30), np.nan), dtype), KEY, 12, 4)
    assert np.isnan(broken.self_check())
    assert np.isnan(broken.trace().value)
    for scale in ("linear", "log"):
        assert np.all(np.isnan(linalg.density(broken, jnp.ones(2, dtype), width=0.1, scale=scale)))


@pytest.mark.slow
def test_trees_jit_and_vmap(float64):
    a = symmetric(8, np.linspace(0.5, 3.0, 12))
    space = {"W": jnp.zeros((2, 5)), "b": [jnp.zeros(2, jnp.float32)]}
    A = linalg.from_dense(jnp.asarray(a), space, space, structure="symmetric")
    keys = jax.random.split(KEY, 3)
    found = jax.vmap(lambda key: spectrum(A, key, 5, 2))(keys)
    traces = jax.vmap(lambda s: s.trace(jnp.log).value)(found)
    for i, key in enumerate(keys):
        alone = linalg.spectral_density(operator(a, "float64"), key, steps=5, probes=2)
        np.testing.assert_allclose(found.nodes[i], alone.nodes, rtol=1e-5)
        np.testing.assert_allclose(found.weights[i], alone.weights, atol=1e-5)
        np.testing.assert_allclose(traces[i], alone.trace(jnp.log).value, rtol=1e-5)
    assert flat(space).size == alone.size == 12


@pytest.mark.slow
def test_normal_probes(dtype):
    a = symmetric(9, VALUES).astype(dtype)
    found = linalg.spectral_density(
        operator(a, dtype), KEY, steps=4, probes=3, sampler=jax.random.normal
    )
    z = np.stack([jax.random.normal(k, (30,), dtype) for k in jax.random.split(KEY, 3)])
    z = z.astype(np.float64)
    exact = np.sum(z * (z @ a.astype(np.float64)), axis=1) / np.sum(z**2, axis=1)
    np.testing.assert_allclose(np.sum(found.weights * found.nodes, axis=1), exact, rtol=1e-4)


def smeared(grid, nodes, weights, width):
    """Bell after bell, in float64."""
    total = np.zeros(len(grid))
    for theta, omega in zip(np.ravel(nodes), np.ravel(weights), strict=True):
        bell = np.exp(-0.5 * ((grid - theta) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        total += omega / len(nodes) * bell
    return total


def test_the_linear_density(dtype):
    found = spectrum(operator(symmetric(0, VALUES), dtype), KEY, 8, 4)
    grid = np.linspace(-4.0, 13.0, 600)
    rho = linalg.density(found, grid, width=0.3)
    nodes, weights = np.asarray(found.nodes, np.float64), np.asarray(found.weights, np.float64)
    exact = smeared(grid, nodes, weights, 0.3)
    np.testing.assert_allclose(rho, exact, atol=500 * np.finfo(dtype).eps)
    np.testing.assert_allclose(trapezoid(rho, grid), 1.0, atol=1e-4)
    other = jax.jit(lambda s, width: linalg.density(s, grid, width=width))(found, 0.3)
    np.testing.assert_allclose(other, rho, atol=10 * np.finfo(dtype).eps)


def test_the_logarithmic_density(dtype):
    values = np.concatenate([-np.geomspace(1e-3, 1.0, 8), np.geomspace(1e-2, 100.0, 16)])
    exact = SpectralDensity(
        jnp.asarray(np.r_[values, 0.0][None], dtype),
        jnp.asarray(np.r_[np.full(24, 0.03), 0.28][None], dtype),
        jnp.zeros((1, 2), dtype),
        *(100, 1, jnp.array(True)),
    )
    logs = np.linspace(np.log(1e-5), np.log(1e4), 400)
    grid = np.concatenate([-np.exp(logs), [0.0], np.exp(logs)])
    rho = np.asarray(linalg.density(exact, grid, width=0.5, scale="log"))
    assert rho[400] == 0.0
    for part, side in ((rho[:400], -1), (rho[401:], 1)):
        there = values[np.sign(values) == side]
        oracle = smeared(logs, np.log(np.abs(there))[None], np.full((1, len(there)), 0.03), 0.5)
        np.testing.assert_allclose(part, oracle, atol=500 * np.finfo(dtype).eps)
        np.testing.assert_allclose(trapezoid(part, logs), 0.03 * len(there), rtol=1e-4)
    mass = trapezoid(rho[:400], logs) + trapezoid(rho[401:], logs)
    np.testing.assert_allclose(mass, 1 - 0.28, rtol=1e-4)


@pytest.mark.parametrize("steps", [12, 30])
def test_the_logarithm_of_the_determinant(steps, float64):
    a = symmetric(1, np.geomspace(1.0, 20.0, 30))
    exact = np.linalg.slogdet(a)[1]
    found = linalg.logdet(operator(a, "float64"), KEY, steps=steps, probes=30)
    assert found.positive
    assert found.products == 30 * (steps + 2)
    assert abs(found.value - exact) <= 3 * found.standard_error
    # The same probes, without any quadrature.
    theta, u = np.linalg.eigh(a)
    samples = ((signs(KEY, 30, 30, "float64") @ u) ** 2) @ np.log(theta)
    error = 2 * 30 * np.log(20) * ((20**0.5 - 1) / (20**0.5 + 1)) ** (2 * steps)
    np.testing.assert_allclose(found.value, np.mean(samples), atol=max(error, 1e-10), rtol=0)
    spread = np.std(samples, ddof=1) / 30**0.5
    np.testing.assert_allclose(found.standard_error, spread, rtol=1e-3)


@pytest.mark.slow
def test_determinants_in_float32():
    a = symmetric(1, np.geomspace(1.0, 20.0, 30))
    found = linalg.logdet(operator(a), KEY, steps=20)
    theta, u = np.linalg.eigh(a)
    samples = ((signs(KEY, 30, 30, "float32") @ u) ** 2) @ np.log(theta)
    np.testing.assert_allclose(found.value, np.mean(samples), rtol=1e-5)
    multiple = linalg.logdet(operator(3.0 * np.eye(30)), KEY, steps=20)
    np.testing.assert_allclose(multiple.value, 30 * np.log(3), rtol=1e-5)
    np.testing.assert_allclose(multiple.standard_error, 0.0, atol=1e-5)
    assert multiple.positive


INDEFINITE = {
    "negative": np.linspace(-0.5, 3.0, 30),
    "all negative": -np.linspace(0.5, 3.0, 30),
    "singular": np.r_[np.zeros(3), np.linspace(1.0, 2.0, 27)],
    "zero": np.zeros(30),
    "singular in this precision": np.r_[1e-9, np.linspace(1.0, 2.0, 29)],
}


@pytest.mark.parametrize("name", INDEFINITE)
def test_what_is_not_positive_has_no_logarithm(name):
    for seed in range(6):  # a zero is rounded up as often as down
        A = operator(symmetric(seed, INDEFINITE[name]))
        found = linalg.logdet(A, KEY, steps=30, probes=2)
        assert not found.positive
        assert np.isnan(found.value)
        assert np.isnan(found.standard_error)


REPETITIONS = 400


@jax.jit
def repeated(A, keys):
    """400 repetitions, each of few probes, and of quadratures that are exact to rounding."""

    def once(key):
        cosine = linalg.spectral_density(A, key, steps=16, probes=25).trace(jnp.cos)
        log = linalg.logdet(A, key, steps=16, probes=25)
        return cosine[:2], cosine.interval(), log[:2]

    return jax.lax.map(once, keys)


@pytest.mark.slow
def test_standard_errors_cover_the_truth_as_often_as_they_say():
    a = symmetric(3, np.random.default_rng(3).uniform(0.5, 4.0, 60)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), REPETITIONS)
    (cosine, error), (low, high), (log, log_error) = repeated(operator(a), keys)
    theta = np.linalg.eigvalsh(a.astype(np.float64))
    exact, exact_log = np.sum(np.cos(theta)), np.sum(np.log(theta))
    assert abs(np.mean((low <= exact) & (exact <= high)) - 0.95) <= 0.03
    assert abs(np.mean(np.abs(log - exact_log) <= 2.064 * log_error) - 0.95) <= 0.03
    for value, reported, truth in ((cosine, error, exact), (log, log_error, exact_log)):
        assert abs(np.mean(value) - truth) <= 3.5 * np.std(value) / REPETITIONS**0.5
        np.testing.assert_allclose(np.mean(reported**2), np.var(value), rtol=0.25)


def test_bad_input():
    A = operator(np.eye(5))
    general = linalg.from_dense(jnp.asarray(np.triu(np.ones((5, 5))), jnp.float32))
    wide = linalg.from_dense(jnp.ones((5, 4)))
    find = linalg.spectral_density
    with unchecked():
        for steps in (0, 6):
            message = rf"spectral_density\(steps\): got {steps}, expected an integer from 1 to the "
            with pytest.raises(ValueError, match=message + "dimension 5"):
                find(A, KEY, steps=steps)
        with pytest.raises(ValueError, match=r"logdet\(steps\): got 40, expected an .* 5\."):
            linalg.logdet(A, KEY)
        message = r"spectral_density\(probes\): got 0, expected an integer ≥ 1\."
        with pytest.raises(ValueError, match=message):
            find(A, KEY, steps=2, probes=0)
        message = r"spectral_density\(operator\): got one with \|⟨u, A v⟩ - ⟨A u, v⟩\| = 0\.\d+ "
        with pytest.raises(ValueError, match=message):
            find(general, KEY, steps=2)
        with pytest.raises(ValueError, match=message):
            linalg.logdet(general, KEY, steps=2)
        message = r"spectral_density\(operator\): got an operator of shape \(5, 4\), expected a map"
        with pytest.raises(ValueError, match=message):
            find(wide, KEY, steps=2)
        found = find(A, KEY, steps=2, probes=1)
        assert np.isnan(found.trace().standard_error)
        for width in (0.0, -1.0, float("nan"), float("inf")):
            message = (
                r"density\(width\): got .*, expected a number in \(0, inf\)\. It is a standard"
            )
            with pytest.raises(ValueError, match=message):
                linalg.density(found, jnp.ones(2), width=width)
        message = r"density\(scale\): got 'ln', expected 'linear' or 'log'\."
        with pytest.raises(ValueError, match=message):
            linalg.density(found, jnp.ones(2), width=1.0, scale="ln")


def test_under_jit_an_asymmetry_is_a_field_of_the_result():
    general = linalg.from_dense(jnp.asarray(np.triu(np.ones((5, 5))) + 9 * np.eye(5), jnp.float32))
    undeclared = linalg.from_dense(2 * jnp.eye(5))
    logdet = jax.jit(lambda A: linalg.logdet(A, KEY, steps=3, probes=4))
    for A, positive in ((general, False), (undeclared, True)):
        assert bool(spectrum(A, KEY, 3, 2).symmetric) == positive
        found = logdet(A)
        assert bool(found.positive) == positive
        assert np.isfinite(found.value) == positive

"""Traces and diagonals by random vectors, against NumPy in float64 on the same vectors."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from oracles import flat, unchecked
from test_numerics import cross_entropy, hessian_vector_product

from jaxnn import linalg

METHODS = {"hutchinson": 1, "hutch++": 3, "xtrace": 2}
KEY = jax.random.key(11)
SIZES = (5, 9, 8, 4)


def network_problem(seed):
    rng = np.random.default_rng(seed)
    layers = [(rng.normal(size=(n, m)), 0.5 * rng.normal(size=m)) for n, m in pairwise(SIZES)]
    layers = jax.tree.map(lambda a: a.astype(np.float32), layers)
    return layers, rng.normal(size=(37, 5)).astype(np.float32), rng.integers(0, 4, 37)


def objective(layers, x, y):
    theta, unravel = ravel_pytree(layers)
    return cross_entropy(theta, unravel, x, y)


def oracle_products(layers, probes, x, y):
    """H z of every probe in float64, by hand: neither XLA nor automatic differentiation."""
    exactly = jax.tree.map(lambda a: a.astype(np.float64), layers)
    unravel = ravel_pytree(layers)[1]
    rows = []
    for z in probes:
        direction = jax.tree.map(lambda a: np.asarray(a, np.float64), unravel(z))
        rows.append(flat(hessian_vector_product(exactly, direction, x.astype(np.float64), y)))
    return np.stack(rows)


def signs(key, count, n, dtype="float32", sampler=jax.random.rademacher):
    """The probes of every method: one key each."""
    return jnp.stack([sampler(k, (n,), dtype) for k in jax.random.split(key, count)])


@pytest.mark.parametrize("batch_size", [None, pytest.param(10, marks=pytest.mark.slow)])
def test_every_probe_of_a_hessian_is_that_of_the_oracle(batch_size):
    layers, x, y = network_problem(0)
    H = linalg.hessian(
        objective, jax.tree.map(jnp.asarray, layers), x, jnp.asarray(y), batch_size=batch_size
    )
    z = signs(KEY, 25, H.shape[0])
    hz = oracle_products(layers, z, x, y)
    forms = np.sum(np.asarray(z, np.float64) * hz, axis=1)
    unravel = ravel_pytree(jax.tree.map(jnp.asarray, layers))[1]
    found = jax.jit(jax.vmap(lambda z: H.quadratic_form(unravel(z))))(z)
    np.testing.assert_allclose(found, forms, rtol=1e-5, atol=1e-5 * np.std(forms))
    assert np.std(forms) > 0.1 * np.abs(np.mean(forms))

    trace = linalg.trace(H, KEY, probes=25)
    np.testing.assert_allclose(trace.value, np.mean(forms), rtol=1e-5)
    np.testing.assert_allclose(trace.standard_error, np.std(forms, ddof=1) / 5, rtol=1e-5)
    assert (trace.probes, trace.products) == (25, 25)

    diagonal = linalg.diagonal(H, KEY, probes=25, max_bytes=10**6)
    samples = np.asarray(z) * hz
    size = np.max(np.abs(samples))
    np.testing.assert_allclose(flat(diagonal.value), samples.mean(0), atol=1e-5 * size, rtol=0)
    error = samples.std(0, ddof=1) / 5
    np.testing.assert_allclose(flat(diagonal.standard_error), error, atol=1e-5 * size, rtol=0)
    assert jax.tree.structure(diagonal.value) == jax.tree.structure(layers)


N = 20


def matrix(seed, *, n=N, rank=None):
    """Not symmetric, with singular values that decay."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    values = 3.0 * 0.8 ** np.arange(n)
    if rank is not None:
        values[rank:] = 0
    return (left * values) @ right.T + 0.5 * (right * values) @ right.T


@partial(jax.jit, static_argnums=(2, 3))
def both(A, key, method, probes):
    """Value and standard error of the trace and of the diagonal: one compilation."""
    options = {"method": method, "probes": probes}
    return linalg.trace(A, key, **options)[:2], linalg.diagonal(A, key, **options)[:2]


def mean_and_error(samples):
    return np.mean(samples, axis=0), np.std(samples, axis=0, ddof=1) / len(samples) ** 0.5


def close(found, expected, dtype):
    factor = 200 * np.finfo(dtype).eps
    for got, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, exact, rtol=factor, atol=factor * np.max(np.abs(exact)))


@pytest.mark.parametrize("seed", [0, 1])
def test_hutchinson_is_its_definition(seed, dtype):
    a = matrix(seed).astype(dtype)
    z = np.asarray(signs(KEY, 7, N, dtype), np.float64)
    trace, diagonal = both(linalg.from_dense(jnp.asarray(a)), KEY, "hutchinson", 7)
    samples = z * (z @ a.astype(np.float64).T)
    close(trace, mean_and_error(samples.sum(1)), dtype)
    close(diagonal, mean_and_error(samples), dtype)


@pytest.mark.parametrize("seed", [0, 1])
def test_hutch_pp_is_its_definition(seed, dtype):
    a = matrix(seed).astype(dtype)
    trace, diagonal = both(linalg.from_dense(jnp.asarray(a)), KEY, "hutch++", 17)  # 5 of each kind
    basis_key, key = jax.random.split(KEY)
    draws = jax.random.rademacher(jax.random.split(basis_key)[0], (5, N), dtype)
    draws = np.asarray(draws, np.float64)
    a = a.astype(np.float64)
    q = np.linalg.qr(a @ draws.T)[0]
    z = np.asarray(signs(key, 5, N, dtype), np.float64)
    outside = np.eye(N) - q @ q.T
    forms = np.einsum("pi,ij,pj->p", z @ outside, a, z @ outside)
    mean, error = mean_and_error(forms)
    close(trace, (np.trace(q.T @ a @ q) + mean, error), dtype)
    mean, error = mean_and_error(z * (z @ (outside @ a).T))
    close(diagonal, (np.diag(q @ q.T @ a) + mean, error), dtype)


def test_counts():
    """Probes are rounded down to full ones: 7, 5 and 4 of 7, 17 and 9 products."""
    A = linalg.from_dense(jnp.asarray(matrix(0), jnp.float32))
    counts = {"hutchinson": (7, 7, 7), "hutch++": (17, 5, 15), "xtrace": (9, 4, 8)}
    for method, (probes, *expected) in counts.items():
        for function, shape in ((linalg.trace, ()), (linalg.diagonal, (N,))):

            def found(function=function, probes=probes, method=method, expected=expected):
                estimate = function(A, KEY, probes=probes, method=method)
                assert [estimate.probes, estimate.products] == expected
                return estimate[:2]

            assert [x.shape for x in jax.eval_shape(found)] == [shape, shape]


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_a_low_rank_is_exact(method, dtype):
    a = matrix(2, rank=4)
    trace, diagonal = both(
        linalg.from_dense(jnp.asarray(a, dtype)), KEY, method, 7 * METHODS[method]
    )
    tolerance = 200 * np.finfo(dtype).eps * np.linalg.norm(a)
    for (value, error), exact in ((trace, np.trace(a)), (diagonal, np.diag(a))):
        np.testing.assert_allclose(value, exact, atol=tolerance, rtol=0)
        assert np.max(error) <= tolerance


@pytest.mark.parametrize("method", METHODS)
def test_zero_and_what_is_not_a_number(method, dtype):
    zero = linalg.from_dense(jnp.zeros((N, N), dtype))
    for found in both(zero, KEY, method, 14):
        for numbers in found:
            np.testing.assert_array_equal(numbers, np.zeros(numbers.shape))
    broken = linalg.from_dense(jnp.zeros((N, N), dtype).at[2, 3].set(jnp.nan))
    (trace, _), (diagonal, _) = both(broken, KEY, method, 14)
    assert np.isnan(trace)
    assert np.isnan(diagonal[2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-22, 1e22])
def test_operators_of_any_size(method, size):
    """In float32, where the squares of their entries do not exist."""
    a = matrix(2, rank=4)
    A = linalg.from_dense(jnp.asarray(size * a, jnp.float32))
    B = linalg.from_dense(jnp.asarray(a, jnp.float32))
    (found, _), (entries, _) = both(A, KEY, method, 24)
    (exact, _), (exact_entries, _) = both(B, KEY, method, 24)
    np.testing.assert_allclose(found / size, exact, rtol=1e-4)
    np.testing.assert_allclose(entries / size, exact_entries, atol=1e-4 * np.abs(a).max())


def uniform(key, shape, dtype):
    """Of variance 1."""
    return 3**0.5 * jax.random.uniform(key, shape, dtype, -1.0, 1.0)


@pytest.mark.parametrize("sampler", [jax.random.normal, uniform])
def test_other_probes(sampler, dtype):
    a = matrix(3).astype(dtype)
    found = linalg.trace(linalg.from_dense(jnp.asarray(a)), KEY, probes=9, sampler=sampler)
    z = np.asarray(signs(KEY, 9, N, dtype, sampler), np.float64)
    close(found[:2], mean_and_error(np.sum(z * (z @ a.astype(np.float64).T), axis=1)), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_trees_of_two_precisions_under_jit_and_vmap(method, float64):
    """Their coordinates are those of the matrix, and the result is the same for each key."""
    a = matrix(4).astype(np.float32)
    space = {"a": jnp.zeros((3, 4)), "b": [jnp.zeros(()), jnp.zeros(7, jnp.float32)]}
    A = linalg.from_dense(jnp.asarray(a, jnp.float64), space, space)
    flat_operator = linalg.from_dense(jnp.asarray(a, jnp.float64))
    keys = jax.random.split(KEY, 3)
    traces, (values, errors) = jax.vmap(lambda key: both(A, key, method, 12))(keys)
    for i, key in enumerate(keys):
        trace, (value, error) = both(flat_operator, key, method, 12)
        np.testing.assert_allclose([t[i] for t in traces], trace, rtol=1e-5)
        pick = lambda tree, i=i: jax.tree.map(lambda x: x[i], tree)
        assert values["b"][1].dtype == jnp.float32
        np.testing.assert_allclose(flat(pick(values)), value, atol=1e-5)
        np.testing.assert_allclose(flat(pick(errors)), error, atol=1e-5)


REPETITIONS, SIZE = 400, 60


def spectrum(kind):
    """A symmetric and a general matrix, neither of a spectrum that a few eigenvalues dominate."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    if kind == "indefinite":
        return (q * rng.normal(0.5, 1.0, SIZE)) @ q.T
    general = np.triu(rng.normal(size=(SIZE, SIZE))) * 0.3 / SIZE**0.5
    return (q * 0.9 ** np.arange(SIZE)) @ q.T + general


@partial(jax.jit, static_argnums=(2, 3))
def repeated(A, keys, method, probes):
    def once(key):
        trace = linalg.trace(A, key, probes=probes, method=method)
        diagonal = linalg.diagonal(A, key, probes=probes, method=method)
        return trace[:2], trace.interval(), diagonal.value, diagonal.interval()

    return jax.vmap(once)(keys)


def covered(interval, truth):
    low, high = interval
    return np.mean((low <= truth) & (truth <= high))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "probes"), [("hutchinson", 100), ("hutchinson", 12), ("hutch++", 45), ("xtrace", 60)]
)
def test_intervals_cover_the_truth_as_often_as_they_say(method, probes):
    keys = jax.random.split(jax.random.key(0), REPETITIONS)
    for kind in ("indefinite", "general"):
        a = spectrum(kind).astype(np.float32)
        found = repeated(linalg.from_dense(jnp.asarray(a)), keys, method, probes)
        (value, error), interval, entries, entry_intervals = jax.tree.map(np.asarray, found)
        exact, exact_entries = np.trace(a.astype(np.float64)), np.diag(a)
        assert abs(covered(interval, exact) - 0.95) <= 0.03
        assert abs(covered(entry_intervals, exact_entries) - 0.95) <= 0.015
        if probes == 100:
            plain = value - 1.96 * error, value + 1.96 * error
            assert abs(covered(plain, exact) - 0.95) <= 0.03
        # Without bias: the mean of all is off by no more than its own error says.
        assert abs(np.mean(value) - exact) <= 3.5 * np.std(value) / REPETITIONS**0.5
        off = np.abs(np.mean(entries, 0) - exact_entries) / np.std(entries, 0)
        assert np.max(off) <= 4.0 / REPETITIONS**0.5
        # As large as the spread of the repetitions.
        np.testing.assert_allclose(np.mean(error**2), np.var(value), rtol=0.25)


def test_bad_input():
    A = linalg.from_dense(jnp.ones((6, 6)))
    wide = linalg.from_dense(jnp.ones((6, 5)))
    with unchecked():
        for name in ("trace", "diagonal"):
            function = getattr(linalg, name)
            for method, least in (("hutchinson", 2), ("hutch++", 6), ("xtrace", 4)):
                message = rf"{name}\(probes\): got {least - 1}, expected an integer ≥ {least}\."
                with pytest.raises(ValueError, match=message):
                    function(A, KEY, probes=least - 1, method=method)
            for method, most in (("hutch++", 18), ("xtrace", 12)):
                message = rf"{name}\(probes\): got {most}, expected fewer than {most} for '{method}"
                with pytest.raises(ValueError, match=message.replace("+", r"\+")):
                    function(A, KEY, probes=most, method=method)
                allowed = partial(function, probes=most - 1, method=method)
                jax.eval_shape(lambda A, allowed=allowed: allowed(A, KEY)[:2], A)
            message = rf"{name}\(method\): got 'hutch', expected 'hutchinson' or 'hutch\+\+' or 'x"
            with pytest.raises(ValueError, match=message):
                function(A, KEY, method="hutch")
            message = rf"{name}\(operator\): got an operator of shape \(6, 5\), expected a map of"
            with pytest.raises(ValueError, match=message):
                function(wide, KEY)
        message = r"trace\(sampler\): got one for 'xtrace', expected None\. It corrects for"
        with pytest.raises(ValueError, match=message):
            linalg.trace(A, KEY, probes=6, method="xtrace", sampler=jax.random.normal)

"""How many vectors go through a product at once, and what an estimate says of its error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.tree_util import Partial
from oracles import unchecked
from scipy import stats

from jaxnn import linalg
from jaxnn.linalg.chunks import CACHE_BYTES, chunk_size, over_keys, product_bytes
from jaxnn.linalg.estimates import Estimate, mean_of, require_probes, student_quantile


@pytest.mark.parametrize(
    ("count", "each", "budget", "size"),
    [
        (10, 100, 1000, 10),
        (10, 100, 399, 3),
        (10, 100, 400, 4),
        (10, 100, 99, 1),
        (10, 0, 5, 5),
        (1, 1, 10**12, 1),
        (7, 10**12, 0, 1),
    ],
)
def test_as_many_as_fit_but_one_at_least(count, each, budget, size):
    assert chunk_size(count, each, budget) == size


def test_the_budget_of_a_cpu_is_its_cache():
    assert chunk_size(10**9, 3) == (CACHE_BYTES if jax.default_backend() == "cpu" else 2**30) // 3


def operator(function, n):
    space = jax.ShapeDtypeStruct((n,), jnp.float32)
    return linalg.LinearOperator(function, function, space, space)


def scanned(v):
    return lax.scan(lambda v, _: (2 * v, jnp.cos(v)), v, length=5)[1][0]  # 5 + 1 + 1 vectors


PROGRAMS = {
    "two": (lambda v: 2 * jnp.sin(v), 2),
    "called": (lambda v: jax.jit(jnp.sin)(v), 2),  # what the called one returns counts twice
    "checkpointed": (lambda v: jax.checkpoint(jnp.sin)(v), 2),
    "either": (lambda v: lax.cond(True, lambda v: 2 * jnp.sin(v), jnp.cos, v), 1 + 3),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_result_inside_a_product_counts(name):
    function, vectors = PROGRAMS[name]
    n = 1000
    counted = product_bytes(operator(function, n))
    assert vectors * 4 * n <= counted <= vectors * 4 * n + 100
    half = product_bytes(operator(function, n // 2))
    assert counted - half == vectors * 4 * n // 2


B = jnp.cos(jnp.arange(20 * 2000, dtype=jnp.float32)).reshape(2000, 20)


def wide(b, v):
    """A product whose intermediate results are 100 times the vector."""
    return (jnp.arange(2000, dtype=jnp.float32) * (b @ v)) @ b


def temporary_bytes(function, *args):
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("function", [Partial(wide, B), scanned, lambda v: jnp.sort(v)[::-1] * v])
def test_the_count_is_above_what_is_there_at_once(function):
    v = jnp.ones(20 if isinstance(function, Partial) else 5000)
    assert temporary_bytes(function, v) <= product_bytes(operator(function, v.size)) + 4096


def test_batches_of_data_count_once():
    x = jnp.linspace(-1.0, 1.0, 4000).reshape(1000, 4)
    objective = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)
    at = lambda size: product_bytes(
        linalg.hessian(objective, jnp.arange(1.0, 5.0), x, batch_size=size)
    )
    assert 8 * at(100) < at(None)


def noise(key):
    """A product of 1000 numbers of every key, of which two are kept."""
    draw = jax.random.normal(key, (1000,))
    return {"sum": jnp.sum(draw**2), "two": jnp.cos(draw[:2])}


@pytest.mark.slow
def test_keys_one_by_one_in_chunks_or_all_together():
    keys = jax.random.split(jax.random.key(3), 7)
    exact = [noise(key) for key in keys]
    used = []
    for chunk in (1, 3, 7, 50):
        found = jax.jit(lambda keys, chunk=chunk: over_keys(noise, keys, chunk))(keys)
        for name in ("sum", "two"):
            rows = np.stack([e[name] for e in exact])
            np.testing.assert_allclose(found[name], rows, rtol=1e-6)
        used.append(temporary_bytes(lambda keys, chunk=chunk: over_keys(noise, keys, chunk), keys))
    assert used[0] < used[1] < used[2]
    assert used[2] == used[3]


@pytest.mark.slow
def test_the_memory_is_that_of_the_budget():
    A = linalg.LinearOperator(*2 * [Partial(wide, B)], *2 * [jnp.ones(20)])
    each, key = product_bytes(A), jax.random.key(0)

    def used(function, chunk):
        budget = chunk * each + each // 2
        estimate = lambda A: function(A, key, probes=12, max_bytes=budget)[:2]
        return temporary_bytes(estimate, A)

    for function in (linalg.trace, linalg.diagonal):
        assert used(function, 1) < 1.2 * each
        for chunk in (4, 12):
            assert 0.3 * chunk * each < used(function, chunk) < 1.2 * chunk * each


def test_more_vectors_than_the_cache_holds_are_not_batched_by_default():
    n = 2**19  # 2 MiB each: a product has two
    function = lambda v: 2 * jnp.sin(v)
    A = linalg.LinearOperator(Partial(function), Partial(function), jnp.ones(n), jnp.ones(n))
    used = temporary_bytes(lambda key: linalg.trace(A, key, probes=20)[:2], jax.random.key(0))
    assert used < 10 * 4 * n


METHODS = ["hutchinson", "hutch++", "xtrace"]


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, "quadrature"])
def test_no_result_depends_on_the_budget(method):
    rng = np.random.default_rng(5)
    m = rng.normal(size=(24, 24)) + np.diag(np.arange(24.0))
    A = linalg.from_dense(jnp.asarray(m + m.T, jnp.float32), structure="symmetric")
    key, each = jax.random.key(1), product_bytes(A)
    found = []
    first = 1 if method == "hutchinson" else 3
    for chunk in {first, 3, 10**6}:  # 10 and 20 keys leave a remainder
        if method == "quadrature":
            budget = chunk * (each + 6 * 24 * 4)
            rule = linalg.spectral_density(A, key, steps=5, probes=10, max_bytes=budget)
            found.append((rule.nodes, rule.weights))
            continue
        options = {"probes": 20, "method": method, "max_bytes": chunk * each}
        found.append(
            (*linalg.trace(A, key, **options)[:2], *linalg.diagonal(A, key, **options)[:2])
        )
    for other in found[1:]:
        for got, expected in zip(other, found[0], strict=True):
            np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)


def test_quantiles_are_those_of_scipy():
    for degrees in (1, 2, 3, 4, 5, 9, 30, 99, 1000):
        for confidence in (1e-3, 0.5, 0.95, 0.999, 1 - 1e-9):
            exact = stats.t.ppf(0.5 + 0.5 * confidence, degrees)
            assert student_quantile(confidence, degrees) == pytest.approx(exact, rel=1e-6)


def test_intervals(dtype):
    samples = np.random.default_rng(0).normal(size=(6, 3)) + np.array([1.0, -2.0, 5.0])
    estimate = mean_of(jnp.asarray(samples, dtype), 12)
    assert (estimate.probes, estimate.products) == (6, 12)
    rtol = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(estimate.value, samples.mean(0), rtol=rtol)
    np.testing.assert_allclose(estimate.standard_error, stats.sem(samples), rtol=rtol)
    for confidence in (0.5, 0.95):
        exact = stats.t.interval(confidence, 5, samples.mean(0), stats.sem(samples))
        np.testing.assert_allclose(estimate.interval(confidence), exact, rtol=100 * rtol)
    through_jit = jax.jit(lambda s: mean_of(s, 12))(jnp.asarray(samples, dtype))
    np.testing.assert_allclose(through_jit.interval(), estimate.interval(), rtol=rtol)


def test_intervals_of_trees_and_of_a_single_probe():
    value, error = {"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([0.0, 0.5])}
    low, high = Estimate(value, error, 2, 2).interval()
    np.testing.assert_allclose(low["a"], [1.0, 2.0 - 0.5 * 12.7062], rtol=1e-5)
    np.testing.assert_allclose(high["a"], [1.0, 2.0 + 0.5 * 12.7062], rtol=1e-5)
    single = mean_of(jnp.array([3.0]), 1)
    assert single.value == 3.0
    assert np.isnan(single.standard_error)
    assert np.all(np.isnan(single.interval()))


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, 95.0, float("nan")])
def test_no_such_confidence(confidence):
    estimate = mean_of(jnp.array([1.0, 3.0]), 2)
    message = r"interval\(confidence\): got .*, expected a number in \(0, 1\)\. 0\.95 is usual\."
    with unchecked(), pytest.raises(ValueError, match=message):
        estimate.interval(confidence)


def test_too_few_probes():
    require_probes("trace(probes)", 6, 6)
    with pytest.raises(ValueError, match=r"trace\(probes\): got 5, expected an integer ≥ 6\."):
        require_probes("trace(probes)", 5, 6)

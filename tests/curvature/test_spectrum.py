"""Summaries of spectra against NumPy's eigenvalues, and their standard errors against the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import unchecked

from jaxnn import linalg
from jaxnn.curvature.spectrum import (
    effective_dimension,
    effective_rank,
    outliers,
    participation_ratio,
    stable_rank,
)
from jaxnn.linalg.quadrature import SpectralDensity, spectral_density

SUMMARIES = {
    "dimension": (
        lambda s: effective_dimension(s, 0.7),
        lambda x: np.sum(np.maximum(x, 0) / (np.maximum(x, 0) + 0.7)),
    ),
    "effective": (effective_rank, lambda x: np.sum(x) / np.max(x)),
    "stable": (stable_rank, lambda x: np.sum(x**2) / np.max(np.abs(x)) ** 2),
    "participation": (participation_ratio, lambda x: np.sum(x) ** 2 / np.sum(x**2)),
}
TABLE = pytest.mark.parametrize(("found", "oracle"), SUMMARIES.values(), ids=SUMMARIES)


def matrix(seed, n=40):
    """A symmetric matrix of some large, many small and a few negative eigenvalues."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, n // 2)) / 4
    return a @ a.T + np.diag(np.r_[np.full(3, 9.0), np.full(n - 3, -0.02)])


@TABLE
@pytest.mark.parametrize("seed", [0, 1])
def test_eigenvalues_are_summarized_exactly(found, oracle, seed, dtype):
    values = np.linalg.eigvalsh(matrix(seed))
    estimate = jax.jit(found)(jnp.asarray(values, dtype))
    np.testing.assert_allclose(
        estimate.value, oracle(values), rtol=50 * float(jnp.finfo(dtype).eps)
    )
    assert (float(estimate.standard_error), int(estimate.products)) == (0.0, 0)
    assert estimate.value.dtype == dtype


@pytest.mark.slow
def test_a_density_estimates_the_same_within_its_standard_error(dtype):
    dense = matrix(2)
    operator = linalg.from_dense(jnp.asarray(dense, dtype), structure="symmetric")
    density = lambda: spectral_density(operator, jax.random.key(1), steps=40, probes=50)
    summarized = lambda: {name: found(density()) for name, (found, _) in SUMMARIES.items()}
    outside, inside = summarized(), jax.jit(summarized)()
    for name, (_, oracle) in SUMMARIES.items():
        estimate, truth = outside[name], oracle(np.linalg.eigvalsh(dense))
        assert abs(float(estimate.value) - truth) <= 4 * float(estimate.standard_error)
        assert 0 < float(estimate.standard_error) < 0.05 * truth
        assert int(estimate.products) == density().products
        np.testing.assert_allclose(inside[name].value, estimate.value, rtol=1e-5)
        np.testing.assert_allclose(inside[name].standard_error, estimate.standard_error, rtol=1e-3)


@TABLE
def test_standard_errors_cover_the_truth(found, oracle, float64):
    """Of probes as they are, z on the sphere, in the coordinates of the eigenvectors."""
    values, runs, probes = np.linalg.eigvalsh(matrix(3)), 400, 30
    z = np.random.default_rng(4).normal(size=(runs, probes, values.size)) ** 2
    weights = jnp.asarray(z / z.sum(-1, keepdims=True))
    nodes = jnp.broadcast_to(jnp.asarray(values), weights.shape[1:])
    density = lambda w: SpectralDensity(
        *(nodes, w, jnp.zeros((probes, 2))), values.size, 0, jnp.array(True)
    )
    estimates = jax.vmap(lambda w: found(density(w))[:2])(weights)
    t = (np.asarray(estimates[0]) - oracle(values)) / np.asarray(estimates[1])
    assert 0.90 <= np.mean(np.abs(t) < 2.045) <= 0.98  # Student's of 29 degrees of freedom: 0.95


def test_what_a_node_of_weight_zero_says_counts_for_nothing():
    rows = lambda *x: jnp.array([x, x])
    density = SpectralDensity(
        *(rows(-5.0, 1.0, 2.0, 90.0), rows(0.0, 0.5, 0.5, 0.0)),
        *(jnp.zeros((2, 2)), 10, 8, jnp.array(True)),
    )
    assert float(effective_rank(density).value) == 15.0 / 2.0
    assert float(stable_rank(density).value) == 25.0 / 4.0
    assert float(participation_ratio(density).value) == 9.0
    np.testing.assert_allclose(
        effective_dimension(density, 1.0).value, 5 * (1 / 2 + 2 / 3), rtol=1e-6
    )
    assert float(effective_rank(density, largest=3.0).value) == 5.0
    broken = density._replace(weights=density.weights.at[0, 1].set(jnp.nan))
    for found, _ in SUMMARIES.values():
        assert np.isnan(found(broken).value)


def test_one_probe_has_no_standard_error():
    density = spectral_density(
        linalg.from_dense(jnp.diag(jnp.arange(6.0)), structure="symmetric"),
        *(jax.random.key(0),),
        steps=6,
        probes=1,
    )
    found = effective_rank(density)
    np.testing.assert_allclose(found.value, 3.0, rtol=1e-5)
    assert np.isnan(found.standard_error)


@TABLE
def test_the_zero_map_has_rank_zero(found, oracle):
    assert float(found(jnp.zeros(5)).value) == 0.0


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e8])
@pytest.mark.parametrize(
    ("bulk", "spikes"), [([1.0, 0.9, 0.6], [20.0, 9.0]), ([0.2], [7, 5, 3, 1])]
)
def test_outliers_are_above_the_widest_gap(bulk, spikes, size, dtype):
    values = size * np.random.default_rng(0).permutation([*bulk, *spikes])
    found = jax.jit(outliers)(jnp.asarray(values, dtype))
    assert int(found.number) == len(spikes)
    np.testing.assert_allclose(found.gap, spikes[-1] / bulk[0], rtol=1e-5)
    falling = np.sort(values)[::-1]
    np.testing.assert_allclose(found.gaps, falling[:-1] / falling[1:], rtol=1e-5)


def test_no_gap_is_seen_in_noise():
    noisy = jnp.array([5.0, 4.0, 1e-8, 1e-14, -1e-9, -3.0])
    found = outliers(noisy)
    assert int(found.number) == 2
    np.testing.assert_allclose(found.gaps[2:], 1.0)
    coarse = outliers(jnp.array([5.0, 4.0, 0.3, 0.01]), floor=0.5)
    assert (int(coarse.number), float(coarse.gap)) == (2, 8.0)
    assert (int(outliers(jnp.zeros(3)).number), float(outliers(jnp.zeros(3)).gap)) == (1, 1.0)
    exact = outliers(jnp.array([2.0, 1.0, 0.0]), floor=0.0)
    assert (int(exact.number), float(exact.gap)) == (2, np.inf)
    assert np.isnan(outliers(jnp.array([2.0, jnp.nan, 1.0])).gap)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: outliers(jnp.ones(1)), r"outliers\(values\): got 1 eigenvalues"),
        (lambda: outliers(jnp.ones(3), floor=-1.0), r"outliers\(floor\): got -1"),
        (lambda: effective_dimension(jnp.ones(3), 0.0), r"effective_dimension\(alpha\): got 0"),
    ],
)
def test_bad_input(call, message):
    with unchecked(), pytest.raises(ValueError, match=message):
        call()

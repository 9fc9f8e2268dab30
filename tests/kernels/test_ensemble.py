"""Ensembles against the moments of trained random linear models, and their predictor."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import unchecked
from scipy.linalg import expm

from jaxnn import kernels


class Pair(NamedTuple):
    nngp: jax.Array
    ntk: jax.Array


def kernel_fn(x1, x2=None):
    """Of features of two kinds: K of the first, Θ of both."""
    x2 = x1 if x2 is None else x2
    nngp = jnp.einsum("ni,mi->nm", x1, x2)
    return Pair(nngp, nngp + 0.5 * nngp**2)


def moments(x, new, y, t, ridge, kernel):
    """Mean and covariance from the definitions, in NumPy."""
    nngp = lambda a, b: a @ b.T
    theta = nngp if kernel == "nngp" else lambda a, b: a @ b.T + 0.5 * (a @ b.T) ** 2
    trained = theta(x, x) + ridge * np.eye(len(x))
    decay = expm(-trained * t) if np.isfinite(t) else np.zeros_like(trained)
    hat = theta(new, x) @ np.linalg.pinv(trained, rcond=1e-10) @ (np.eye(len(x)) - decay)
    joint = nngp(np.concatenate([new, x]), np.concatenate([new, x]))
    both = np.concatenate([np.eye(len(new)), -hat], axis=1)
    return hat @ y, both @ joint @ both.T


@pytest.mark.parametrize("kernel", ["ntk", "nngp"])
def test_one_call_predicts_at_all_times_and_inputs(kernel, float64):
    rng = np.random.default_rng(0)
    x, new, y = rng.normal(size=(6, 3)), rng.normal(size=(4, 3)), rng.normal(size=(6, 2))
    relative = 0.1
    own = kernel_fn(jnp.asarray(x))
    ridge = 0.2 + relative * float(jnp.mean(jnp.diagonal(getattr(own, kernel))))
    predict = kernels.ensemble_predictor(
        kernel_fn, jnp.asarray(x), jnp.asarray(y), kernel=kernel, noise=0.2, diag_reg=relative
    )
    at = jax.jit(lambda t, new: (predict(t, new), predict(t, new, covariance="diagonal"),
                                 predict(t, new, covariance=None), predict(t)))  # fmt: skip
    for t in (0.0, 0.6, np.inf):
        full, diagonal, alone, train = at(t, jnp.asarray(new))
        mean, covariance = moments(x, new, y, t, ridge, kernel)
        for found in (full, diagonal, alone):
            np.testing.assert_allclose(found.mean, mean, atol=1e-10)
        np.testing.assert_allclose(full.covariance, covariance, atol=1e-10)
        np.testing.assert_allclose(diagonal.covariance, np.diag(covariance), atol=1e-10)
        assert alone.covariance is None
        mean, covariance = moments(x, x, y, t, ridge, kernel)
        np.testing.assert_allclose(train.mean, mean, atol=1e-10)
        np.testing.assert_allclose(train.covariance, covariance, atol=1e-10)
        flow = kernels.gradient_flow(
            getattr(own, kernel), jnp.asarray(y), t, noise=0.2, diag_reg=relative
        )
        np.testing.assert_allclose(train.mean, flow.train, atol=1e-10)


def test_predictions_are_differentiated_at_equal_eigenvalues(float64):
    # Orthonormal inputs: all eigenvalues are equal, and the predictor keeps the eigenmodes.
    y, new = jnp.array([1.0, -1.0, 0.5]), jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)))

    def mean(scale):
        predict = kernels.ensemble_predictor(kernel_fn, scale * jnp.eye(3), y)
        found = predict(0.7, new)
        return jnp.sum(found.mean) + jnp.sum(jnp.sin(found.covariance))

    slope = jax.jit(jax.value_and_grad(mean))
    difference = (slope(1.2 + 1e-5)[0] - slope(1.2 - 1e-5)[0]) / 2e-5
    np.testing.assert_allclose(slope(1.2)[1], difference, rtol=1e-7)


def test_variances_are_not_negative(dtype):
    # Smooth kernels, whose posterior variance is far below the rounding of K_**.
    x = np.linspace(0.0, 1.0, 60)[:, None]
    k = jnp.asarray(np.exp(-20 * (x - x.T) ** 2), dtype)
    y, ones = jnp.sin(k[0]), jnp.ones(60, dtype)

    @jax.jit
    def variances(noise):
        posterior = kernels.gp_posterior(k, y, k, k, noise=noise).covariance
        options = {"cross_nngp": k, "cross_ntk": k, "noise": noise}
        full, diagonal = (
            kernels.ntk_ensemble(k, k, y, jnp.inf, own_nngp=own, **options).covariance
            for own in (k, ones)
        )
        alone = kernels.gp_posterior(k, y, k, ones, noise=noise).covariance
        return posterior, full, [alone, diagonal]

    values, vectors = np.linalg.eigh(np.asarray(k, float))
    for noise in (0.0, 1e-7, 0.1):
        *full, alone = variances(noise)
        for found in (*map(jnp.diagonal, full), *alone):
            assert float(jnp.min(found)) >= 0.0
        for found in full:
            np.testing.assert_array_equal(found, found.T)
        # K - K(K + noise)⁻¹K without cancellation.
        shrunk = np.where(values > 1e-12, values * noise / (values + noise + 1e-300), 0.0)
        exact = np.einsum("ni,i,ni->n", vectors, shrunk, vectors)
        scale = 1e-4 if dtype == "float32" else 1e-8
        np.testing.assert_allclose(alone[0], exact, atol=scale)


def test_bad_input():
    k, y = jnp.eye(2), jnp.ones(2)
    crosses = {"cross_nngp": k, "cross_ntk": k, "own_nngp": k}
    predict = kernels.ensemble_predictor(kernel_fn, k, y)
    with unchecked():
        for action, start in [
            (lambda: kernels.ntk_ensemble(k, k, y[:1], 1.0, **crosses), "ntk_ensemble(nngp, ntk,"),
            (
                lambda: kernels.ntk_ensemble(k, k, y, 1.0, **{**crosses, "own_nngp": k[:1]}),
                "ntk_ensemble(cross_nngp, cross_ntk, own_nngp): got",
            ),
            (lambda: kernels.ntk_ensemble(k, k, y, -1.0, **crosses), "ntk_ensemble(t): got -1.0"),
            (lambda: predict(-1.0), "predict(t): got -1.0"),
            (lambda: predict(1.0, covariance=True), "predict(covariance): got True"),
            (
                lambda: kernels.ensemble_predictor(kernel_fn, k, y, kernel="ntkgp"),
                "ensemble_predictor(kernel): got 'ntkgp'",
            ),
            (
                lambda: kernels.ensemble_predictor(kernel_fn, k, y, noise=-1.0),
                "ensemble_predictor(noise): got -1.0",
            ),
            (lambda: kernels.ensemble_predictor(kernel_fn, k, y[:1]), "ensemble_predictor(nngp"),
        ]:
            with pytest.raises(ValueError, match=r": got .*, expected .*\. ") as error:
                action()
            assert str(error.value).startswith(start)

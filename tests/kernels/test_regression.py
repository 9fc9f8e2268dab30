"""Gaussian processes against scikit-learn, linear systems against NumPy's pseudo-inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import unchecked
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from jaxnn import kernels, nn
from jaxnn.kernels.matrices import as_matrix


def problem(seed, n=8, m=3, columns=2):
    rng = np.random.default_rng(seed)
    x, new = rng.normal(size=(n, 2)), rng.normal(size=(m, 2)) + 0.5
    return x, new, rng.normal(size=(n, columns)) - 0.3, RBF(1.7)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_posterior_is_that_of_scikit_learn(seed, noise, float64):
    x, new, y, rbf = problem(seed)
    oracle = GaussianProcessRegressor(rbf, alpha=noise or 1e-300, optimizer=None).fit(x, y)
    mean, covariance = oracle.predict(new, return_cov=True)
    k, y, cross, own = map(jnp.asarray, (rbf(x), y, rbf(new, x), rbf(new)))
    found = jax.jit(kernels.gp_posterior)(k, y, cross, own, noise=noise)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.covariance, covariance[..., 0], rtol=1e-5, atol=1e-8)
    variances = kernels.gp_posterior(k, y[:, 0], cross, jnp.diag(own), noise=noise)
    np.testing.assert_allclose(variances.covariance, np.diag(covariance[..., 0]), atol=1e-8)
    np.testing.assert_allclose(variances.mean, mean[:, 0], rtol=1e-6, atol=1e-8)
    assert kernels.gp_posterior(k, y, cross, noise=noise).covariance is None
    assert (found.rank, found.residual < 1e-8) == (8, True)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_evidence_is_a_density(seed, float64):
    x, _, y, rbf = problem(seed)
    k = rbf(x)
    exact = sum(stats.multivariate_normal(np.zeros(8), k + 0.2 * np.eye(8)).logpdf(c) for c in y.T)
    evidence = jax.jit(kernels.log_marginal_likelihood)(k, jnp.asarray(y), noise=0.2)
    np.testing.assert_allclose(evidence, exact, rtol=1e-10)

    def of_length(length):
        distance = np.sum((x[:, None] - x) ** 2, axis=-1)
        kernel = jnp.exp(-jnp.asarray(distance) / (2.0 * length**2))
        return kernels.log_marginal_likelihood(kernel, jnp.asarray(y), noise=0.2)

    slope = jax.jit(jax.grad(of_length))(1.7)
    difference = (of_length(1.7 + 1e-5) - of_length(1.7 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    assert kernels.log_marginal_likelihood(jnp.ones((3, 3)), jnp.ones(3)) == -jnp.inf


def test_singular_kernels_give_the_answer_of_least_norm_and_say_so(dtype):
    # Two equal inputs with different targets, and a rank of 3 for 6 inputs.
    rng = np.random.default_rng(2)
    factor = rng.normal(size=(6, 3))
    factor[1] = factor[0]
    k, b = (factor @ factor.T).astype(dtype), rng.normal(size=(6, 2)).astype(dtype)
    found = jax.jit(kernels.solve)(k, b)
    exact = np.linalg.pinv(factor @ factor.T, rcond=1e-5, hermitian=True) @ b
    tolerance = 1e-3 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(found.x, exact, rtol=tolerance, atol=tolerance)
    assert found.rank == 3
    missed = np.linalg.norm(factor @ factor.T @ exact - b) / np.linalg.norm(b)
    np.testing.assert_allclose(found.residual, missed, rtol=1e-3)
    definite = jax.jit(kernels.solve)(k, b, noise=0.5)
    inverse = np.linalg.solve(factor @ factor.T + 0.5 * np.eye(6), b)
    np.testing.assert_allclose(definite.x, inverse, rtol=tolerance, atol=tolerance)
    assert (definite.rank, definite.residual < 1e-4) == (6, True)


@pytest.mark.parametrize("seed", [0, 3])
def test_eigenmodes_rebuild_the_kernel(seed, float64):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(2, 3, 4))  # 3 examples, 2 outputs: rank 4 of 6
    full = jnp.asarray(np.einsum("anp,bmp->nmab", factor, factor))
    modes = jax.jit(kernels.eigenmodes)(full)
    matrix = np.einsum("nap,mbp->namb", *[np.moveaxis(factor, 0, 1)] * 2).reshape(6, 6)
    np.testing.assert_allclose(as_matrix(full), matrix, rtol=1e-12)
    u = np.asarray(modes.eigenvectors)
    np.testing.assert_allclose((u * np.asarray(modes.eigenvalues)) @ u.T, matrix, atol=1e-12)
    assert modes.rank == 4
    assert np.all(np.diff(modes.eigenvalues) <= 0)
    assert np.all(modes.eigenvalues >= 0)
    pseudo = (u * np.asarray(modes.inverses())) @ u.T
    np.testing.assert_allclose(pseudo, np.linalg.pinv(matrix, rcond=1e-10), atol=1e-8)
    limit = kernels.max_learning_rate(full, momentum=0.5)
    np.testing.assert_allclose(limit, 3.0 / np.linalg.eigvalsh(matrix)[-1], rtol=1e-12)
    assert kernels.eigenmodes(jnp.diag(jnp.array([1.0, 0.1, 0.01])), tolerance=0.05).rank == 2


def test_targets_of_classes():
    labels = jnp.array([2, 0, 1, 1])
    targets = kernels.class_targets(labels, 3)
    np.testing.assert_allclose(targets, np.eye(3)[np.asarray(labels)] - 1 / 3, rtol=1e-6)


def test_shapes_that_do_not_fit():
    k, y = jnp.eye(3), jnp.ones(3)
    with unchecked():
        for action, start in [
            (lambda: kernels.solve(k, jnp.ones(2)), "solve(b): got shape (2,), expected (3, ...)"),
            (lambda: kernels.gp_posterior(k, y, jnp.ones((2, 4))), "gp_posterior(y, cross): got"),
            (
                lambda: kernels.gp_posterior(k, y, jnp.ones((2, 3)), jnp.ones(3)),
                "gp_posterior(own): got shape (3,), expected (2,) or (2, 2)",
            ),
            (lambda: kernels.eigenmodes(jnp.ones((2, 2, 3))), "eigenmodes(kernel): got shape (2, "),
            (lambda: kernels.eigenmodes(k, tolerance=-1.0), "eigenmodes(tolerance): got -1.0"),
        ]:
            with pytest.raises(ValueError, match=r": got .*, expected .*\. ") as error:
                action()
            assert str(error.value).startswith(start)


@pytest.mark.slow
def test_the_evidence_selects_the_weights_of_an_infinite_network(float64):
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.normal(size=(40, 3)))
    net = lambda std: nn.mlp((1, 1), activation=nn.erf(), weight_std=std, bias_std=0.2)
    drawn = jnp.linalg.cholesky(kernels.infinite(net(2.0), x).nngp + 1e-4 * jnp.eye(40))
    y = drawn @ jnp.asarray(rng.normal(size=(40, 30)))
    stds = (1.0, 1.5, 2.0, 2.5, 3.0)
    evidence = [
        kernels.log_marginal_likelihood(kernels.infinite(net(s), x).nngp, y, noise=1e-4)
        for s in stds
    ]
    assert stds[int(np.argmax(evidence))] == 2.0


def test_the_evidence_has_derivatives_where_eigenvalues_are_equal(float64):
    # Of rank 2: six of the eight eigenvalues of K + noise·I are the noise.
    rng = np.random.default_rng(6)
    factor, y = (jnp.asarray(rng.normal(size=(8, c))) for c in (2, 3))
    evidence = jax.jit(
        lambda s: kernels.log_marginal_likelihood(s * factor @ factor.T, y, noise=0.2)
    )
    difference = (evidence(1.3 + 1e-5) - evidence(1.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(evidence)(1.3), difference, rtol=1e-6)

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


@pytest.mark.parametrize("kind", ["int32", "uint8", "bool", "bfloat16", "float16"])
def test_integers_are_data_and_half_precision_is_solved_in_float32(kind):
    rng = np.random.default_rng(7)
    factor = rng.integers(0, 2, size=(5, 4))
    integers = factor @ factor.T + 3 * np.eye(5, dtype=int)
    k = jnp.asarray(integers, "int32" if kind == "bool" else kind)
    y = jnp.asarray(rng.integers(0, 2, size=5), kind)
    exact = np.linalg.solve(integers + 0.5 * np.eye(5), np.asarray(y, float))
    dtype = kind if "float" in kind else "float32"
    found = jax.jit(lambda k, y: (
        kernels.solve(k, y, noise=0.5).x,
        kernels.gp_posterior(k, y, k, noise=0.5).mean,
        kernels.gradient_flow(k, y, jnp.inf, noise=0.5, cross=k).test,
        kernels.eigenmodes(k).eigenvalues,
        kernels.max_learning_rate(k),
        kernels.log_marginal_likelihood(k, y, noise=0.5),
    ))(k, y)  # fmt: skip
    modes = np.linalg.eigvalsh(integers)[::-1]
    density = stats.multivariate_normal(np.zeros(5), integers + 0.5 * np.eye(5)).logpdf(y)
    exact = (exact, integers @ exact, integers @ exact, modes, 2.0 / modes[0], density)
    for got, expected in zip(found, exact, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got.astype("float32"), expected, rtol=1e-2, atol=1e-2)


def test_noise_per_target_and_relative_to_the_kernel(float64):
    x, new, y, rbf = problem(8)
    k, cross, own = (jnp.asarray(2.5 * a) for a in (rbf(x), rbf(new, x), rbf(new)))
    noise, y = np.linspace(0.1, 0.9, 8), jnp.asarray(y)
    both = jax.jit(lambda n, r: (
        kernels.gp_posterior(k, y, cross, own, noise=n, diag_reg=r),
        kernels.log_marginal_likelihood(k, y, noise=n, diag_reg=r),
    ))  # fmt: skip
    found, evidence = both(jnp.asarray(noise), 0.2)
    full = np.asarray(k) + np.diag(noise) + 0.2 * 2.5 * np.eye(8)
    np.testing.assert_allclose(found.mean, cross @ np.linalg.solve(full, y), rtol=1e-9)
    covariance = own - cross @ np.linalg.solve(full, cross.T)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-10)
    exact = sum(stats.multivariate_normal(np.zeros(8), full).logpdf(c) for c in y.T)
    np.testing.assert_allclose(evidence, exact, rtol=1e-10)
    for bad in ((-noise, 0.0), (noise, -0.1), (np.full(8, np.nan), 0.0)):
        posterior, evidence = both(jnp.asarray(bad[0]), bad[1])
        for part in (posterior.mean, posterior.covariance, evidence):
            assert jnp.all(jnp.isnan(part))


def test_noise_that_is_no_variance():
    k, y = jnp.eye(3), jnp.ones(3)
    calls = {
        "solve": lambda **options: kernels.solve(k, y, **options),
        "gp_posterior": lambda **options: kernels.gp_posterior(k, y, k, **options),
        "log_marginal_likelihood": lambda **o: kernels.log_marginal_likelihood(k, y, **o),
        "gradient_flow": lambda **options: kernels.gradient_flow(k, y, 1.0, **options),
    }
    with unchecked():
        for name, call in calls.items():
            for option, value in [
                *(("noise", v) for v in (-0.1, jnp.inf, jnp.nan, jnp.array([1.0, -1.0, 1.0]))),
                *(("noise", v) for v in (jnp.ones(2), jnp.ones((3, 3)))),
                *(("diag_reg", v) for v in (-1e-9, jnp.ones(3))),
            ]:
                with pytest.raises(ValueError, match=r": got .*, expected .*\. ") as error:
                    call(**{option: value})
                assert str(error.value).startswith(f"{name}({option}): got ")
            with pytest.raises(ValueError, match=r"got dtype complex64, expected real numbers"):
                kernels.solve(k, y.astype("complex64"))


def test_classes_beyond_the_dtype_of_the_labels():
    targets = kernels.class_targets(jnp.array([44, 0], "uint8"), 301)
    np.testing.assert_array_equal(np.argmax(targets, axis=1), [44, 0])
    np.testing.assert_allclose(targets.sum(axis=1), 0.0, atol=1e-4)
    with unchecked(), pytest.raises(ValueError, match=r"class_targets\(labels\): got dtype float"):
        kernels.class_targets(jnp.array([0.0, 1.0]), 2)


def test_a_kernel_with_nan_has_no_solution():
    parts = jax.jit(lambda k, y: (
        kernels.log_marginal_likelihood(k, y, noise=0.1),
        kernels.solve(k, y).x,
        kernels.gradient_flow(k, y, jnp.inf).train,
    ))(jnp.eye(3).at[0, 1].set(jnp.nan), jnp.ones(3))  # fmt: skip
    assert all(jnp.all(jnp.isnan(part)) for part in parts)


def test_no_examples_and_no_outputs():
    nothing, y, cross = jnp.zeros((0, 0)), jnp.zeros(0), jnp.zeros((2, 0))
    posterior = kernels.gp_posterior(nothing, y, cross, jnp.eye(2), noise=0.1)
    np.testing.assert_array_equal(posterior.mean, [0.0, 0.0])  # the prior
    np.testing.assert_array_equal(posterior.covariance, np.eye(2))
    assert kernels.solve(nothing, jnp.zeros((0, 3))).x.shape == (0, 3)
    assert kernels.log_marginal_likelihood(nothing, y) == 0.0
    for trained in (
        kernels.gradient_flow(nothing, y, 1.0, cross=cross),
        kernels.gradient_descent(nothing, y, 3, learning_rate=0.1, cross=cross),
    ):
        np.testing.assert_array_equal(trained.test, [0.0, 0.0])
    assert kernels.max_learning_rate(nothing) == jnp.inf
    assert kernels.gradient_flow(jnp.eye(2), jnp.zeros((2, 0)), 1.0).train.shape == (2, 0)
    assert kernels.solve_iteratively(lambda a, b: a @ b.T, cross.T, y, noise=0.1).converged
    assert kernels.integrate(lambda t, y: -y, y, 0.0, 1.0).finished

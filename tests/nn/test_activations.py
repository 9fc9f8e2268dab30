"""Activations and their derivatives against float64 formulas in NumPy and SciPy."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from jaxnn.nn import activations

ALPHA, LAMBDA = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. (2017), equation 14


def np_elu(x, alpha):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def d_elu(x, alpha):
    return np.where(x > 0, 1, alpha * np.exp(np.minimum(x, 0)))


def np_swish(x, beta=1.0):
    return x * special.expit(beta * x)


def d_swish(x, beta=1.0):
    s = special.expit(beta * x)
    return s + beta * x * s * special.expit(-beta * x)


def tanh_argument(x):
    return np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)


def np_gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(tanh_argument(x)))


def d_gelu_tanh(x):
    t = np.tanh(tanh_argument(x))
    with np.errstate(over="ignore"):
        slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2) / np.cosh(tanh_argument(x)) ** 2
    return 0.5 * (1 + t) + 0.5 * x * slope


def gaussian(x):
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


# name: the function, its formula and its derivative in float64
TABLE = {
    "identity": (activations.identity, lambda x: x, np.ones_like),
    "sigmoid": (
        activations.sigmoid,
        special.expit,
        lambda x: special.expit(x) * special.expit(-x),
    ),
    "tanh": (activations.tanh, np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "relu": (activations.relu, lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1, 0)),
    "leaky_relu": (
        activations.leaky_relu,
        lambda x: np.where(x > 0, x, 0.01 * x),
        lambda x: np.where(x > 0, 1, 0.01),
    ),
    "leaky_relu(0.3)": (
        partial(activations.leaky_relu, slope=0.3),
        lambda x: np.where(x > 0, x, 0.3 * x),
        lambda x: np.where(x > 0, 1, 0.3),
    ),
    "abs": (activations.abs, np.abs, np.sign),
    "elu": (activations.elu, partial(np_elu, alpha=1), partial(d_elu, alpha=1)),
    "elu(0.5)": (
        partial(activations.elu, alpha=0.5),
        partial(np_elu, alpha=0.5),
        partial(d_elu, alpha=0.5),
    ),
    "selu": (
        activations.selu,
        lambda x: LAMBDA * np_elu(x, ALPHA),
        lambda x: LAMBDA * d_elu(x, ALPHA),
    ),
    "softplus": (activations.softplus, lambda x: np.logaddexp(0, x), special.expit),
    "swish": (activations.swish, np_swish, d_swish),
    "swish(1.702)": (
        partial(activations.swish, beta=1.702),
        partial(np_swish, beta=1.702),
        partial(d_swish, beta=1.702),
    ),
    "gelu": (
        activations.gelu,
        lambda x: x * special.ndtr(x),
        lambda x: special.ndtr(x) + x * gaussian(x),
    ),
    "gelu_tanh": (activations.gelu_tanh, np_gelu_tanh, d_gelu_tanh),
    "erf": (
        activations.erf,
        special.erf,
        lambda x: 2 / np.sqrt(np.pi) * np.exp(-(x**2)),
    ),
    "sin": (activations.sin, np.sin, np.cos),
    "cos": (activations.cos, np.cos, lambda x: -np.sin(x)),
    "threshold": (activations.threshold, lambda x: np.where(x >= 0, 1, 0), np.zeros_like),
}
GRID = np.linspace(-12.0, 12.0, 97)  # with 0, the kinks' place
EXTREMES = np.array([s * x for x in (0, 1e-30, 88, 1e2, 1e4, 1e10, 1e30) for s in (1, -1)])


@lru_cache
def compiled(name):
    function = TABLE[name][0]
    return jax.jit(lambda x: (function(x), jax.vmap(jax.grad(function))(x)))


def evaluate(name, points, dtype):
    """Value and derivative; every set of points is padded to one shape, to compile once."""
    padded = np.zeros(GRID.size)
    padded[: points.size] = points
    return [result[: points.size] for result in compiled(name)(padded.astype(dtype))]


@pytest.mark.parametrize("name", TABLE)
def test_values_and_derivatives_follow_the_formula(name, dtype):
    _, formula, derivative = TABLE[name]
    value, slope = evaluate(name, GRID, dtype)
    assert value.dtype == dtype
    assert slope.dtype == dtype
    tolerance = 1e-13 if dtype == jnp.float64 else 2e-6
    np.testing.assert_allclose(value, formula(GRID), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(slope, derivative(GRID), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", TABLE)
def test_derivatives_in_the_table_are_those_of_the_formula(name):
    _, formula, derivative = TABLE[name]
    x, h = GRID[np.abs(GRID) > 0.1], 1e-5
    central = (formula(x + h) - formula(x - h)) / (2 * h)
    np.testing.assert_allclose(derivative(x), central, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", TABLE)
def test_values_and_derivatives_at_any_size_in_float32(name):
    _, formula, derivative = TABLE[name]
    x = EXTREMES.astype(np.float32)
    value, slope = evaluate(name, x, np.float32)
    assert jnp.isfinite(value).all()
    assert jnp.isfinite(slope).all()
    # Results and factors below the normal numbers of float32 may be 0.
    exact = x.astype(np.float64)
    np.testing.assert_allclose(value, formula(exact), rtol=1e-6, atol=1e-36)
    np.testing.assert_allclose(slope, derivative(exact), rtol=1e-6, atol=1e-36)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_kept(kind):
    x = jnp.asarray([-6e4, -88.0, -20.0, -3.0, -0.5, 0.0, 0.5, 3.0, 20.0, 88.0, 6e4], kind)
    rtol = 4.0 * float(jnp.finfo(kind).eps)
    every = jax.jit(lambda x: {name: function(x) for name, (function, _, _) in TABLE.items()})
    slopes = jax.jit(
        lambda x: {name: jax.vmap(jax.grad(f))(x) for name, (f, _, _) in TABLE.items()}
    )(x)
    for name, value in every(x).items():
        assert value.dtype == kind
        assert slopes[name].dtype == kind
        assert jnp.isfinite(slopes[name]).all(), name
        exact = TABLE[name][1](np.asarray(x, np.float64))
        np.testing.assert_allclose(value.astype(float), exact, rtol=rtol, atol=rtol, err_msg=name)


def test_derivatives_at_kinks():
    slopes = {"relu": 0.0, "abs": 0.0, "leaky_relu(0.3)": 0.3, "elu(0.5)": 0.5, "threshold": 0.0}
    for name, expected in slopes.items():
        _, slope = evaluate(name, np.array([0.0, -0.0]), np.float32)
        np.testing.assert_array_equal(slope, np.float32(expected), err_msg=name)


@pytest.mark.parametrize(
    ("function", "derivative"),
    [
        (activations.leaky_relu, lambda x: np.minimum(x, 0)),
        (activations.elu, lambda x: np.expm1(np.minimum(x, 0))),
        (activations.swish, lambda x: x**2 * special.expit(x / 2) * special.expit(-x / 2)),
    ],
)
def test_constants_may_be_traced_and_learned(function, derivative, dtype):
    x = jnp.asarray(GRID, dtype)
    constant = jnp.asarray(0.5, dtype)
    slope = jax.jit(jax.jacobian(function, argnums=1))(x, constant)
    rtol = 1e-12 if dtype == jnp.float64 else 1e-5
    np.testing.assert_allclose(slope, derivative(GRID), rtol=rtol, atol=rtol)
    np.testing.assert_array_equal(function(x, constant), function(x, 0.5))


@pytest.mark.parametrize(
    ("function", "place", "minimum"),
    [(activations.swish, -1.27846, -0.27846), (activations.gelu, -0.75179, -0.16997)],
)
def test_minima_of_swish_and_gelu(function, place, minimum, float64):
    slope = jax.jit(jax.grad(function))
    found = optimize.brentq(lambda x: float(slope(jnp.asarray(x))), -2.0, -0.5, xtol=1e-12)
    assert found == pytest.approx(place, abs=1e-5)
    assert float(function(jnp.asarray(found))) == pytest.approx(minimum, abs=1e-5)
    assert (function(jnp.asarray(GRID)) >= minimum - 1e-5).all()


def test_gelu_is_nearly_a_swish(float64):
    x = jnp.linspace(-10.0, 10.0, 20001)
    gap = jnp.abs(activations.gelu(x) - activations.swish(x, 1.702)).max()
    assert 0.0203 < gap <= 0.02034
    assert jnp.abs(activations.gelu(x) - activations.gelu_tanh(x)).max() < 5e-4


def expectation(function):
    """E f(Z) for Z ~ N(0, 1), split at the kink."""
    call = jax.jit(function)

    def integrand(x):
        return float(call(jnp.asarray(x))) * stats.norm.pdf(x)

    halves = [integrate.quad(integrand, a, b, limit=60)[0] for a, b in ((-9, 0), (0, 9))]
    return sum(halves)


def test_means_under_a_standard_normal(float64):
    assert expectation(activations.elu) == pytest.approx(0.16052, abs=1e-5)
    assert expectation(activations.relu) == pytest.approx(0.39894, abs=1e-5)
    assert expectation(activations.tanh) == pytest.approx(0.0, abs=1e-12)
    # The fixed point that defines SELU.
    assert expectation(activations.selu) == pytest.approx(0.0, abs=1e-9)
    assert expectation(lambda x: activations.selu(x) ** 2) == pytest.approx(1.0, abs=1e-9)


def test_tanh_is_a_shifted_sigmoid(dtype):
    x = jnp.asarray(GRID, dtype)
    tolerance = 1e-15 if dtype == jnp.float64 else 3e-7
    shifted = 2.0 * activations.sigmoid(2.0 * x) - 1.0
    np.testing.assert_allclose(activations.tanh(x), shifted, atol=tolerance)


def test_bounds_of_the_derivatives(dtype):
    _, sigmoid = evaluate("sigmoid", GRID, dtype)
    assert (sigmoid <= 0.25).all()
    assert sigmoid.max() == 0.25
    assert (sigmoid > 0).all()
    _, tanh = evaluate("tanh", GRID, dtype)
    assert (tanh <= 1).all()
    assert tanh.max() == 1


def test_softmax_is_a_point_of_the_simplex_with_its_jacobian(dtype):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 3, 4)) * 3.0 + 1.0
    p = activations.softmax(jnp.asarray(z, dtype))
    rtol = 1e-13 if dtype == jnp.float64 else 2e-6
    np.testing.assert_allclose(p, special.softmax(z, axis=-1), rtol=rtol)
    jacobian = jax.jacobian(activations.softmax)(jnp.asarray(z[0, 0], dtype))
    q = special.softmax(z[0, 0])
    np.testing.assert_allclose(jacobian, np.diag(q) - np.outer(q, q), rtol=rtol, atol=rtol)


def test_softmax_at_any_size_in_float32():
    z = jnp.array([[a, b, 0.5] for a in EXTREMES for b in EXTREMES], jnp.float32)
    p, jacobian = jax.jit(
        lambda z: (activations.softmax(z), jax.vmap(jax.jacobian(activations.softmax))(z))
    )(z)
    exact = special.softmax(np.asarray(z, np.float64), axis=-1)
    np.testing.assert_allclose(p, exact, rtol=2e-6, atol=1e-37)
    assert jnp.isfinite(jacobian).all()
    np.testing.assert_allclose(jacobian.sum(axis=1), 0, atol=1e-6)

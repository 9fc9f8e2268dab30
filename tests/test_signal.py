"""Maps of variances and correlations against SciPy's quadrature, and against deep networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import unchecked
from scipy import integrate, optimize

from jaxnn import nn, signal


def mean(f, q):
    density = lambda z: np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    return integrate.quad(lambda z: density(z) * f(np.sqrt(q) * z), -12, 12, epsabs=1e-13)[0]


@pytest.mark.parametrize(("weight", "bias", "start"), [(1.1, 0.3, 1.0), (2.0, 0.1, 0.2)])
def test_the_fixed_point_of_tanh(weight, bias, start, float64):
    point = jax.jit(
        lambda w, b: signal.fixed_point(
            nn.tanh(), weight_std=w, bias_std=b, start=start, tolerance=1e-12
        )
    )(weight, bias)
    square = lambda u: np.tanh(u) ** 2
    equation = lambda q: weight**2 * mean(square, q) + bias**2 - q
    q = optimize.brentq(equation, 1e-3, 10.0, xtol=1e-13)
    np.testing.assert_allclose(point.variance, q, rtol=1e-9)
    slope = weight**2 * mean(lambda u: np.cosh(u) ** -4, q)
    np.testing.assert_allclose(point.slope, slope, rtol=1e-9)
    assert point.converged
    assert 1 < point.steps < 1000


@pytest.mark.slow
def test_a_variance_that_grows_for_ever_has_not_converged():
    point = signal.fixed_point(nn.relu(), weight_std=2.0)
    assert not point.converged
    slow = signal.fixed_point(nn.tanh(), weight_std=1.0, max_steps=5)
    assert (int(slow.steps), bool(slow.converged)) == (5, False)


def test_the_slope_is_that_of_the_correlation_map_at_one(float64):
    # χ₁ = dc'/dc at c = 1 (Schoenholz et al., equation 5).
    options = {"weight_std": 1.4, "bias_std": 0.2}
    point = signal.fixed_point(nn.erf(), tolerance=1e-13, **options)
    c = 1.0 - 1e-6
    after = signal.correlation_map(nn.erf(), c, point.variance, **options)
    np.testing.assert_allclose((1.0 - after) / (1.0 - c), point.slope, rtol=1e-4)
    assert signal.correlation_map(nn.erf(), 1.0, point.variance, **options) == 1.0
    many = signal.correlation_map(nn.erf(), jnp.array([-0.5, c]), point.variance, **options)
    np.testing.assert_allclose(many[1], after, rtol=1e-12)


@pytest.mark.slow
def test_correlations_are_those_of_a_wide_network():
    n, q, c, options = 4000, 0.8, 0.4, {"weight_std": 1.5, "bias_std": 0.5}
    keys = jax.random.split(jax.random.key(0), 3)
    a, b = jax.random.normal(keys[0], (2, n))
    h = q**0.5 * jnp.stack([a, c * a + (1 - c**2) ** 0.5 * b])
    layer = nn.dense(n, **options)
    params, _ = layer.init(keys[1], (n,))
    x, y = layer.apply(params, jnp.tanh(h))
    measured = x @ y / jnp.linalg.norm(x) / jnp.linalg.norm(y)
    predicted = signal.correlation_map(nn.tanh(), c, q, **options)
    assert abs(measured - predicted) < 4 / n**0.5


@pytest.mark.slow
def test_the_edge_of_chaos(float64):
    critical = jax.jit(lambda b: signal.critical_weight_std(nn.tanh(), bias_std=b))
    for bias in (0.05**0.5, 0.5):
        edge = critical(bias)
        below, above = (
            signal.fixed_point(nn.tanh(), weight_std=edge + d, bias_std=bias).slope
            for d in (-1e-3, 1e-3)
        )
        assert below < 1 < above
    np.testing.assert_allclose(signal.critical_weight_std(nn.relu()), 2**0.5, rtol=1e-6)
    assert signal.correlation_depth(np.exp(-0.25)) == pytest.approx(4.0)
    assert signal.correlation_depth(1.1) < 0


def test_a_tolerance_that_is_none():
    with unchecked(), pytest.raises(ValueError, match=r"fixed_point\(tolerance\): got 0"):
        signal.fixed_point(nn.tanh(), weight_std=1.0, tolerance=0.0)

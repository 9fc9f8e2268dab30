"""Dual activations against quadrature in float64, at any scale and correlation."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_pairs import ACTIVATIONS, FLAT, HOMOGENEOUS, MOMENTS, NUMERICAL, SLOPE, expectation

from jaxnn import nn
from jaxnn.nn import angles, duals, quadrature


def dual_of(name):
    return ACTIVATIONS[name][0]().kernel.keywords["dual"]


def arrays(*values, dtype):
    return tuple(jnp.asarray(v, dtype) for v in values)


def test_the_quadrature_knows_gaussian_moments():
    for v1, v2, r in MOMENTS:
        mass, linear, fourth = (
            expectation(g, g, v1, v2, r) for g in (np.ones_like, lambda u: u, np.square)
        )
        np.testing.assert_allclose(mass, 1.0, rtol=1e-13)
        np.testing.assert_allclose(linear, r * math.sqrt(v1 * v2), atol=1e-14 + 1e-13 * v1)
        np.testing.assert_allclose(fourth, v1 * v2 * (1 + 2 * r**2), rtol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_duals_are_expectations(name, dtype):
    dual, (_, phi, slope) = dual_of(name), ACTIVATIONS[name]
    v1, v2, r = (np.array(column) for column in zip(*MOMENTS, strict=True))
    values = jax.jit(dual)(*arrays(r * np.sqrt(v1 * v2), v1, v2, dtype=dtype))
    # What an error of one ulp in the covariance does: dϑ = d(cos ϑ)/sin ϑ, and at most √eps.
    eps = np.finfo(dtype).eps
    error = 10 * eps * (1 + 1 / np.sqrt(np.maximum(1 - r**2, 100 * eps)))
    # Expansions converge slowly where a standard deviation is large against 1.
    error = error + (np.where(np.maximum(v1, v2) < 4, 1e-9, 2e-5) if name in NUMERICAL else 0.0)
    for value, g in zip(values, (phi, slope), strict=True):
        assert value.dtype == dtype
        exact = np.array([expectation(g, g, *m) for m in MOMENTS])
        size = np.array([math.sqrt(expectation(g, g, v, v, 1.0)) for v in (*v1, *v2)])
        size = size[: len(r)] * size[len(r) :]
        assert np.all(np.abs(np.asarray(value) - exact) <= error * size + 1e-14)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name not in FLAT])
def test_the_derivative_in_the_covariance_is_the_derivative_dual(name, float64):
    # dE[φ(u)φ(w)]/dk = E[φ'(u)φ'(w)] (Daniely et al., 2016), also at k = 0 and at k = v₁ = v₂.
    dual = dual_of(name)
    v1, v2, r = (np.array(column) for column in zip(*MOMENTS, strict=True))
    k, v1, v2 = arrays(r * np.sqrt(v1 * v2), v1, v2, dtype="float64")
    derivative = jax.jit(jax.vmap(jax.grad(lambda *m: dual(*m)[0])))(k, v1, v2)
    exact, close = dual(k, v1, v2)[1], np.ones(len(k), bool)
    if name.startswith("rectified"):
        # At opposite inputs the derivative of √ε² is taken, which is 0 where the limit is not.
        close = r > -1
    if name in NUMERICAL:
        close = np.maximum(v1, v2) < 4
    np.testing.assert_allclose(derivative[close], exact[close], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_no_variance_is_too_small_or_large(name):
    # A network of 100 layers of gain ½ or 2 gets here; (cv₁)(cv₂) is no float32.
    dual = dual_of(name)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, None, None))
    def at_scales(c, k, v1, v2):
        value, slopes = dual(c * k, c * v1, c * v2)
        derivatives = jax.grad(lambda *m: dual(*m)[0], argnums=(0, 1, 2))(c * k, c * v1, c * v2)
        return jnp.stack([value / c, slopes, *derivatives])

    scales = jnp.asarray([1.0, 1e-30, 1e-15, 1e15, 1e30], "float32")
    for v1, v2, r in [(1.3, 0.4, -0.6), (1.3, 0.4, 0.0), (2.0, 2.0, 1.0), (0.7, 3.0, 0.9)]:
        moments = arrays(r * math.sqrt(v1 * v2), v1, v2, dtype="float32")
        unscaled, *scaled = at_scales(scales, *moments)
        for values in scaled:
            np.testing.assert_allclose(values, unscaled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("v", [1e8, 1e25])
def test_saturated_erf_is_the_sign(v):
    # erf becomes the sign function: E = (2/π) arcsin(correlation).
    for r in (-0.9, 0.0, 0.5, 1.0):
        value, derivative = jax.jit(duals.erf)(*arrays(r * v, v, v, dtype="float32"))
        assert abs(value - 2 / math.pi * math.asin(r)) < 1e-3
        assert 0 < derivative < 1e-3


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_fast_oscillations_decorrelate(name):
    v = 300.0  # e^v is no float32
    same, other = (dual_of(name)(*arrays(k, v, v, dtype="float32")) for k in (v, 0.9 * v))
    np.testing.assert_allclose(same, (0.5, 0.5), rtol=1e-6)
    np.testing.assert_allclose(other, (0.0, 0.0), atol=1e-12)


@pytest.mark.parametrize("v", [1.0, 3.7, 1e-20, 2e20])
@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_almost_parallel_features_in_float32(name, v):
    # Angles from 0 over 1e-4 to 1e-2, exactly as given by float32 numbers.
    dual = dual_of(name)
    v32 = np.float32(v)
    k = v32 - np.spacing(v32) * np.array([0, 1, 2, 8, 64, 512], np.float32)
    narrow = jax.jit(dual)(k, v32, v32)
    with jax.enable_x64(True):
        wide = jax.jit(dual)(*arrays(k, v32, v32, dtype="float64"))
    angle = np.arccos(k.astype(np.float64) / np.float64(v32))
    assert angle[1] < 6e-4 < 5e-3 < angle[-1]
    for value, exact in zip(narrow, wide, strict=True):
        np.testing.assert_allclose(value, exact, rtol=3e-7)


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_a_zero_input_has_the_derivative_at_zero(name, dtype):
    layer, dual = ACTIVATIONS[name][0], dual_of(name)
    at_zero = float(jax.grad(lambda u: layer().apply((), u[None, None])[0, 0])(0.0))
    mean = sum({"relu": (0, 1), "leaky_relu": (SLOPE, 1), "abs": (-1, 1)}[name]) / 2
    for v1, v2, slopes in [(0, 0, at_zero**2), (0, 2.5, at_zero * mean), (2.5, 0, at_zero * mean)]:
        value, derivative = jax.jit(dual)(*arrays(0.0, v1, v2, dtype=dtype))
        assert value == 0
        np.testing.assert_allclose(derivative, slopes, rtol=1e-6)


@pytest.mark.parametrize("bits", [32, 64])
def test_the_arctangent_is_as_precise_as_its_floats(bits):
    rng = np.random.default_rng(3)
    y, x = rng.normal(size=(2, 20000)) * 10.0 ** rng.uniform(-6, 6, size=(2, 20000))
    y[:4], x[:4] = (0.0, 1.0, -1.0, 0.0), (1.0, 0.0, 0.0, -1.0)
    with jax.enable_x64(bits == 64):
        y, x = arrays(y, x, dtype=f"float{bits}")
        angle = np.asarray(jax.jit(angles.arctan2)(y, x), float)
        slopes = jax.jit(jax.vmap(jax.grad(angles.arctan2, argnums=(0, 1))))(y, x)
        known = jax.jit(jax.vmap(jax.grad(jnp.arctan2, argnums=(0, 1))))(y, x)
    exact = np.arctan2(np.asarray(y, float), np.asarray(x, float))
    assert np.all(np.abs(angle - exact) <= 4 * np.finfo(f"float{bits}").eps * np.abs(exact))
    for slope, value in zip(slopes, known, strict=True):
        np.testing.assert_allclose(slope, value, rtol=1e-5)


@pytest.mark.parametrize("rule", [quadrature.kinked, quadrature.smooth])
def test_both_quadratures_agree_with_a_closed_form(rule, float64):
    # erf is smooth; where it is not steep both have to be exact.
    v1, v2, r = (np.array(c) for c in zip(*[m for m in MOMENTS if max(m[:2]) < 3], strict=True))
    moments = arrays(r * np.sqrt(v1 * v2), v1, v2, dtype="float64")
    for value, exact in zip(
        jax.jit(rule(nn.activations.erf))(*moments), duals.erf(*moments), strict=True
    ):
        np.testing.assert_allclose(value, exact, rtol=1e-8, atol=1e-14)


def test_a_kink_costs_no_accuracy_where_the_function_is_split_there(float64):
    moments = arrays(0.999 * 1.5, 1.5, 1.5, dtype="float64")
    exact = duals.piecewise_linear(0.0, 1.0)(*moments)
    for value, known in zip(quadrature.kinked(nn.activations.relu)(*moments), exact, strict=True):
        assert abs(value - known) < 1e-10
    # The expansion of a kinked function converges too slowly, and says so.
    assert np.isnan(quadrature.smooth(nn.activations.relu)(*moments)[0])


@pytest.mark.slow
@pytest.mark.parametrize("rule", [quadrature.kinked, quadrature.smooth])
def test_second_derivatives_of_numerical_duals(rule, float64):
    k, v1, v2 = arrays(0.3, 1.1, 0.7, dtype="float64")
    numerical, exact = (
        jax.jit(jax.hessian(lambda *m, dual=dual: dual(*m)[0], argnums=(0, 1, 2)))(k, v1, v2)
        for dual in (rule(nn.activations.erf), duals.erf)
    )
    np.testing.assert_allclose(np.array(numerical), np.array(exact), rtol=1e-6, atol=1e-9)


def test_an_expansion_that_has_not_converged_is_no_number():
    k, v = jnp.asarray([0.5, 20.0, 0.5]), jnp.asarray([1.0, 50.0, 1.0])
    value, derivative = jax.jit(dual_of("tanh"))(k, v, jnp.ones(3))
    assert np.isnan(value).tolist() == np.isnan(derivative).tolist() == [False, True, False]

"""Dual activations against quadrature in float64, at any scale and correlation."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_pairs import (
    ACTIVATIONS,
    FLAT,
    HOMOGENEOUS,
    MOMENTS,
    NUMERICAL,
    SLOPE,
    expectation,
    logistic,
)

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


@pytest.mark.slow
@pytest.mark.parametrize("rule", [quadrature.kinked, quadrature.smooth])
def test_second_derivatives_of_numerical_duals(rule, float64):
    k, v1, v2 = arrays(0.3, 1.1, 0.7, dtype="float64")
    numerical, exact = (
        jax.jit(jax.hessian(lambda *m, dual=dual: dual(*m)[0], argnums=(0, 1, 2)))(k, v1, v2)
        for dual in (rule(nn.activations.erf), duals.erf)
    )
    np.testing.assert_allclose(np.array(numerical), np.array(exact), rtol=1e-6, atol=1e-9)


def on_a_grid(g, v1, v2, r):
    """E[g(u)g(w)] by the trapezoidal rule, exponentially precise for functions without kinks."""
    steps = [min(0.2, math.sqrt(v) / 8) for v in (v1, v2)]
    u, w = (
        np.arange(-9 * math.sqrt(v), 9 * math.sqrt(v), h)
        for v, h in zip((v1, v2), steps, strict=True)
    )
    x, y = u[:, None] / math.sqrt(v1), w[None, :] / math.sqrt(v2)
    density = np.exp(-(x**2 - 2 * r * x * y + y**2) / (2 * (1 - r**2)))
    density *= math.prod(steps) / (2 * math.pi * math.sqrt(v1 * v2 * (1 - r**2)))
    return g(u) @ density @ g(w)


def gelu_tanh(u):
    return u * logistic(2 * math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))


def slope_of_gelu_tanh(u):
    z = 2 * math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)
    inner = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * u**2)
    return logistic(z) + u * logistic(z) * logistic(-z) * inner


SMOOTH = {name: ACTIVATIONS[name] for name in ("tanh", "sigmoid", "softplus", "swish")}
SMOOTH["gelu_tanh"] = (nn.gelu_tanh, gelu_tanh, slope_of_gelu_tanh)


@pytest.mark.parametrize(
    "name", [*list(SMOOTH)[:-1], pytest.param("gelu_tanh", marks=pytest.mark.slow)]
)
def test_expansions_hand_large_variances_to_what_is_right_there(name, float64):
    layer, *functions = SMOOTH[name]
    dual = layer().kernel.keywords["dual"]
    moments = [(2.0, 1.0, 0.5), (9.0, 9.0, 0.6), (200.0, 30.0, -0.4), (0.01, 60.0, 0.9)]
    v1, v2, r = (np.array(column) for column in zip(*moments, strict=True))
    wide = arrays(r * np.sqrt(v1 * v2), v1, v2, dtype="float64")
    narrow = arrays(r * np.sqrt(v1 * v2), v1, v2, dtype="float32")
    compiled = jax.jit(dual)
    for found, bound in ((compiled(*wide), 1e-9), (compiled(*narrow), 1e-6)):
        for value, g in zip(found, functions, strict=True):
            exact = np.array([on_a_grid(g, *m) for m in moments])
            size = np.array([math.sqrt(on_a_grid(g, a, a, 0.99) * on_a_grid(g, b, b, 0.99))
                             for a, b, _ in moments])  # fmt: skip
            assert np.all(np.abs(np.asarray(value) - exact) <= bound * size)


@pytest.mark.parametrize("v", [30.0, 1e4, 1e8])
def test_equal_inputs_of_large_variance_in_a_saturated_network(v, dtype):
    # E[tanh'²] = ∫ sech⁴(u) p(u) du is near 4/3 p(0), and E[tanh²] near 1 - 2 p(0).
    m = jnp.asarray(v, dtype)
    dual = jax.jit(dual_of("tanh"))
    value, derivative = dual(m, m, m)
    density = 1 / math.sqrt(2 * math.pi * v)
    np.testing.assert_allclose(value, 1 - 2 * density, rtol=1.0 * density / v + 1e-6)
    np.testing.assert_allclose(derivative, 4 / 3 * density, rtol=1 / v + 1e-6)
    partial_k, *partials_v = jax.jit(jax.grad(lambda *m: dual(*m)[0], argnums=(0, 1, 2)))(m, m, m)
    np.testing.assert_allclose(partial_k, derivative, rtol=1e-5)
    for slope in partials_v:  # E[tanh²] changes by p(0)/v dv where all three change
        bound = 2 * density / v**2 + 1e-6 * density
        np.testing.assert_allclose(slope + partial_k / 2, density / v / 2, rtol=0, atol=bound)


@pytest.mark.parametrize("name", [pytest.param("gelu", marks=pytest.mark.slow), "relu"])
def test_kinked_quadrature_at_large_variances(name, float64):
    exact = {"gelu": duals.gelu, "relu": duals.piecewise_linear(0.0, 1.0)}[name]
    fn = getattr(nn.activations, name)
    v1, v2 = np.array([30.0, 400.0, 1e4, 1e4]), np.array([30.0, 400.0, 0.1, 1e4])
    moments = arrays(np.array([1.0, 0.9999, -0.5, 0.3]) * np.sqrt(v1 * v2), v1, v2, dtype="float64")
    for value, known in zip(jax.jit(quadrature.kinked(fn))(*moments), exact(*moments), strict=True):
        np.testing.assert_allclose(value, known, rtol=1e-7)


def test_a_function_that_the_nodes_do_not_resolve_is_no_number():
    v = jnp.asarray([1.0, 1e4, 1e6])
    for value in jax.jit(quadrature.kinked(jnp.sin))(0.5 * v, v, v):
        assert np.isnan(value).tolist() == [False, True, True]
    # The nodes of the expansion alias 1000 z to a slow wave, which is found out.
    nothing = lambda k, v1, v2: (jnp.full_like(k, jnp.nan),) * 2
    for value in jax.jit(quadrature.smooth(jnp.sin, beyond=nothing))(0.5 * v[2], v[2], v[2]):
        assert np.isnan(value)

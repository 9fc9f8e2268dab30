"""Duals against quadrature, networks against a NumPy recursion and against random networks."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import unchecked
from scipy import special

from jaxnn import nn
from jaxnn.nn import limit

SLOPE = 0.2
# name: (layer, dual, φ, φ')
ACTIVATIONS = {
    "relu": (
        nn.relu,
        limit.piecewise_linear(0.0, 1.0),
        lambda u: np.maximum(u, 0),
        lambda u: np.where(u > 0, 1.0, 0.0),
    ),
    "leaky_relu": (
        partial(nn.leaky_relu, SLOPE),
        limit.piecewise_linear(SLOPE, 1.0, at_zero=SLOPE),
        lambda u: np.where(u > 0, u, SLOPE * u),
        lambda u: np.where(u > 0, 1.0, SLOPE),
    ),
    "abs": (nn.abs, limit.piecewise_linear(-1.0, 1.0), np.abs, np.sign),
    "erf": (nn.erf, limit.erf, special.erf, lambda u: 2 / math.sqrt(math.pi) * np.exp(-(u**2))),
    "sin": (nn.sin, limit.sin, np.sin, np.cos),
    "cos": (nn.cos, limit.cos, np.cos, lambda u: -np.sin(u)),
}
HOMOGENEOUS = ("relu", "leaky_relu", "abs")

# (v₁, v₂, correlation)
MOMENTS = [
    *((1.3, 0.4, r) for r in (-0.999, -0.6, 0.0, 0.3, 0.95, 0.999)),
    *((0.02, 7.0, r) for r in (-0.999, -0.2, 0.0, 0.8, 0.999)),
    *((3e-6, 1e-6, r) for r in (-0.7, 0.0, 0.99)),
    *((9.0, 5.0, r) for r in (-0.97, 0.0, 0.5)),
    (2.5, 2.5, 1.0),
    (2.5, 0.1, -1.0),
]


@cache
def polar_nodes(angle):
    """Nodes r, t and weights of the plane's standard normal, in 4 sectors where cos t and
    cos(t - angle) have no zero, so that a kink of an activation at 0 costs no accuracy.
    """
    cuts = [0.0, 2 * math.pi, *(k * math.pi / 2 for k in (1, 3))]
    cuts = np.unique([*cuts, *((angle + k * math.pi / 2) % (2 * math.pi) for k in (1, 3))])
    node, weight = np.polynomial.legendre.leggauss(60)
    half = np.diff(cuts) / 2
    t = ((cuts[:-1] + cuts[1:]) / 2 + half * node[:, None]).ravel()
    node, r_weight = np.polynomial.legendre.leggauss(80)
    r = 5.0 * (node[:, None] + 1)  # the mass beyond 10 is below 1e-21
    density = r * np.exp(-(r**2) / 2) / (2 * math.pi)
    return r, t, 5.0 * r_weight[:, None] * density * (half * weight[:, None]).ravel()


def expectation(g, h, v1, v2, correlation):
    """E[g(u)h(w)] for centered Gaussian (u, w), by Gauss-Legendre quadrature in float64."""
    angle = math.acos(max(-1.0, min(1.0, correlation)))
    r, t, weight = polar_nodes(angle)
    u, w = math.sqrt(v1) * r * np.cos(t), math.sqrt(v2) * r * np.cos(t - angle)
    return np.sum(weight * g(u) * h(w))


def covariance(g, k, v1, v2):
    return expectation(g, g, v1, v2, k / math.sqrt(v1 * v2))


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
    _, dual, phi, slope = ACTIVATIONS[name]
    v1, v2, r = (np.array(column) for column in zip(*MOMENTS, strict=True))
    values = jax.jit(dual)(*arrays(r * np.sqrt(v1 * v2), v1, v2, dtype=dtype))
    # What an error of one ulp in the covariance does: dϑ = d(cos ϑ)/sin ϑ, and at most √eps.
    eps = np.finfo(dtype).eps
    error = 10 * eps * (1 + 1 / np.sqrt(np.maximum(1 - r**2, 100 * eps)))
    for value, g in zip(values, (phi, slope), strict=True):
        assert value.dtype == dtype
        exact = np.array([expectation(g, g, *m) for m in MOMENTS])
        size = np.array([math.sqrt(expectation(g, g, v, v, 1.0)) for v in (*v1, *v2)])
        size = size[: len(r)] * size[len(r) :]
        assert np.all(np.abs(np.asarray(value) - exact) <= error * size + 1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_derivative_in_the_covariance_is_the_derivative_dual(name, float64):
    # dE[φ(u)φ(w)]/dk = E[φ'(u)φ'(w)] (Daniely et al., 2016), also at k = 0 and at k = v₁ = v₂.
    dual = ACTIVATIONS[name][1]
    v1, v2, r = (np.array(column) for column in zip(*MOMENTS, strict=True))
    k, v1, v2 = arrays(r * np.sqrt(v1 * v2), v1, v2, dtype="float64")
    derivative = jax.jit(jax.vmap(jax.grad(lambda *m: dual(*m)[0])))(k, v1, v2)
    np.testing.assert_allclose(derivative, dual(k, v1, v2)[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_no_variance_is_too_small_or_large(name):
    # A network of 100 layers of gain ½ or 2 gets here; (cv₁)(cv₂) is no float32.
    dual = ACTIVATIONS[name][1]

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
        value, derivative = jax.jit(limit.erf)(*arrays(r * v, v, v, dtype="float32"))
        assert abs(value - 2 / math.pi * math.asin(r)) < 1e-3
        assert 0 < derivative < 1e-3


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_fast_oscillations_decorrelate(name):
    v = 300.0  # e^v is no float32
    same, other = (ACTIVATIONS[name][1](*arrays(k, v, v, dtype="float32")) for k in (v, 0.9 * v))
    np.testing.assert_allclose(same, (0.5, 0.5), rtol=1e-6)
    np.testing.assert_allclose(other, (0.0, 0.0), atol=1e-12)


@pytest.mark.parametrize("v", [1.0, 3.7, 1e-20, 2e20])
@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_almost_parallel_features_in_float32(name, v):
    # Angles from 0 over 1e-4 to 1e-2, exactly as given by float32 numbers.
    dual = ACTIVATIONS[name][1]
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
    layer, dual, _, _ = ACTIVATIONS[name]
    at_zero = float(jax.grad(lambda u: layer().apply((), u[None, None])[0, 0])(0.0))
    mean = (1.0 + {"relu": 0.0, "leaky_relu": SLOPE, "abs": -1.0}[name]) / 2
    for v1, v2, slopes in [(0, 0, at_zero**2), (0, 2.5, at_zero * mean), (2.5, 0, at_zero * mean)]:
        value, derivative = jax.jit(dual)(*arrays(0.0, v1, v2, dtype=dtype))
        assert value == 0
        np.testing.assert_allclose(derivative, slopes, rtol=1e-6)


# ---------------------------------------------------------------------------- whole networks


def data():
    """x1 and x2 in float64, of numbers that float32 holds."""
    rng = np.random.default_rng(8)
    x1, x2 = rng.normal(size=(3, 5)), 1.7 * rng.normal(size=(2, 5))
    return x1.astype(np.float32).astype(np.float64), x2.astype(np.float32).astype(np.float64)


def infinite(net, x1, x2):
    return jax.jit(lambda x1, x2: net.kernel(limit.inputs(x1, x2)))(x1, x2)


def recursion(name, widths, weight_std, bias_std, parametrization):
    """NNGP and NTK of a multilayer perceptron, pair by pair, in float64 with `expectation`."""
    _, _, phi, slope = ACTIVATIONS[name]
    x1, x2 = data()
    nngp, ntk = np.zeros((2, len(x1), len(x2)))
    for i, a in enumerate(x1):
        for j, b in enumerate(x2):
            below = len(a)
            k, v1, v2, theta = a @ b / below, a @ a / below, b @ b / below, 0.0
            for depth, width in enumerate(widths):
                if depth > 0:
                    theta *= covariance(slope, k, v1, v2)
                    k, v1, v2 = (covariance(phi, *m) for m in ((k, v1, v2), (v1,) * 3, (v2,) * 3))
                own = below * k + 1
                k, v1, v2 = (weight_std**2 * m + bias_std**2 for m in (k, v1, v2))
                theta = weight_std**2 * theta + (k if parametrization == "ntk" else own)
                below = width
            nngp[i, j], ntk[i, j] = k, theta
    return nngp, ntk


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("relu", (4,)),
        ("relu", (8, 9, 6, 1)),
        ("leaky_relu", (9, 6, 4)),
        ("abs", (7, 4)),
        ("erf", (8, 9, 6, 4)),
        ("sin", (6, 4)),
        ("cos", (9, 6, 4)),
    ],
)
def test_perceptrons_follow_the_recursion(name, widths, float64):
    options = {"weight_std": 1.3, "bias_std": 0.4}
    layer = ACTIVATIONS[name][0]()
    nets = {
        p: nn.mlp(widths, activation=layer, parametrization=p, **options)
        for p in ("standard", "ntk")
    }
    kernels = jax.jit(lambda *x: {p: nets[p].kernel(limit.inputs(*x)) for p in nets})(*data())
    for parametrization, kernel in kernels.items():
        exact = recursion(name, widths, parametrization=parametrization, **options)
        for value, expected in zip((kernel.nngp, kernel.ntk), exact, strict=True):
            assert value.dtype == "float64"
            size = np.max(np.abs(expected))
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-13 * size)
        assert (kernel.width, kernel.depth, kernel.gaussian) == (widths[-1], len(widths), True)


def test_float32_is_float64_rounded():
    layer = nn.dense(4, weight_std=1.3, bias_std=0.4)
    net = nn.serial(layer, nn.relu(), layer, nn.erf(), layer, nn.abs(), layer, nn.sin(), layer)
    narrow = infinite(net, *(x.astype(np.float32) for x in data()))
    with jax.enable_x64(True):
        wide = infinite(net, *data())
    for moment in ("nngp", "ntk", "variance1", "variance2"):
        value, exact = getattr(narrow, moment), np.asarray(getattr(wide, moment))
        assert (value.dtype, exact.dtype) == ("float32", "float64")
        np.testing.assert_allclose(value, exact, rtol=0, atol=1e-5 * np.max(np.abs(exact)))


def test_the_diagonal_alone(dtype):
    # Parallel features: E[φφ] = v/2 and E[φ'φ'] = 1/2 at every layer.
    x = data()[0].astype(dtype)
    net = nn.mlp((8, 6, 2), weight_std=1.1, bias_std=0.3)
    diagonal = jax.jit(lambda x: net.kernel(limit.paired_inputs(x)))(x)
    w2, b2, v, theta = 1.1**2, 0.3**2, np.mean(data()[0] ** 2, axis=1), 0.0
    for below in (5, 8, 6):
        v, theta = (v, theta) if below == 5 else (v / 2, theta / 2)
        v, theta = w2 * v + b2, w2 * theta + below * v + 1
    np.testing.assert_allclose(diagonal.ntk, theta, rtol=20 * np.finfo(dtype).eps)
    for moment in (diagonal.nngp, diagonal.variance1, diagonal.variance2):
        np.testing.assert_allclose(moment, v, rtol=20 * np.finfo(dtype).eps)


def test_under_vmap(float64):
    x1, x2 = (jnp.asarray(x) for x in data())
    net = nn.mlp((8, 2), weight_std=1.1, bias_std=0.3)
    kernel = infinite(net, x1, x2)
    rows = jax.jit(jax.vmap(lambda row: net.kernel(limit.inputs(row[None], x2))))(x1)
    for name in ("nngp", "ntk"):
        np.testing.assert_allclose(getattr(rows, name)[:, 0], getattr(kernel, name), rtol=1e-13)
    for static in ("width", "depth", "gaussian"):
        assert getattr(rows, static) == getattr(kernel, static)


# In all of these the expectation over random networks is the limit at any width: only one layer
# of weights reads random features, and it reads Gaussian ones.
dense = partial(nn.dense, weight_std=1.2, bias_std=0.5)
unbiased = partial(nn.dense, weight_std=1.2)
tangent = partial(nn.dense, weight_std=1.2, bias_std=0.5, parametrization="ntk")
NETWORKS = {
    "standard": nn.residual(nn.serial(dense(6), nn.erf(), dense(3)), dense(3)),
    "ntk": nn.serial(tangent(6), nn.relu(), tangent(2)),
    "residual": nn.serial(tangent(4), nn.residual(nn.serial(nn.abs(), tangent(4)))),
    "nested": nn.serial(
        unbiased(4), nn.parallel(nn.residual(unbiased(4)), nn.serial(nn.sin(), unbiased(4)))
    ),
    "concatenation": nn.serial(
        nn.parallel(
            nn.serial(unbiased(3), nn.leaky_relu(SLOPE)),
            unbiased(5),
            nn.identity(),
            combine="concatenate",
        ),
        unbiased(2),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_limit_is_the_mean_over_random_networks(name, float64):
    net = NETWORKS[name]
    x = jnp.asarray(np.random.default_rng(5).normal(size=(3, 3))) * jnp.array([[1.0], [0.5], [0.0]])
    draws = 1500

    def one(key):
        params, _ = net.init(key, (3,))
        y = net.apply(params, x)
        jacobian = jax.tree.leaves(jax.jacobian(net.apply)(params, x))
        flat = jnp.concatenate([j.reshape(*y.shape, -1) for j in jacobian], axis=-1)
        outputs = y.shape[1]
        return y @ y.T / outputs, jnp.einsum("iap,jap->ij", flat, flat) / outputs

    # The generator that compiles fastest; the test needs many small programs.
    keys = jax.random.split(jax.random.key(0, impl="unsafe_rbg"), draws)
    samples = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=250))(keys)
    kernel = infinite(net, x, x)
    for sample, exact in zip(samples, (kernel.nngp, kernel.ntk), strict=True):
        error = np.std(sample, axis=0, ddof=1) / math.sqrt(draws)
        assert np.all(error <= 0.06 * np.max(np.abs(exact)))
        assert np.all(np.abs(np.mean(sample, axis=0) - exact) <= 4 * error + 1e-12)


@pytest.mark.slow
def test_deep_networks_approach_the_limit(float64):
    # Two layers of random features: the mean has an error of order 1/width, the spread 1/√width.
    width, draws = 256, 200
    layer = partial(nn.dense, weight_std=1.4, bias_std=0.2, parametrization="ntk")
    net = nn.serial(layer(width), nn.relu(), layer(width), nn.erf(), layer(1))
    x = jnp.asarray(np.random.default_rng(6).normal(size=(2, 4)))

    def ntk(key):
        params, _ = net.init(key, (4,))
        jacobian = jax.tree.leaves(jax.jacrev(lambda p: net.apply(p, x)[:, 0])(params))
        return sum(j.reshape(2, -1) @ j.reshape(2, -1).T for j in jacobian)

    samples = jax.jit(jax.vmap(ntk))(jax.random.split(jax.random.key(1, impl="unsafe_rbg"), draws))
    exact = infinite(net, x, x).ntk
    error = np.std(samples, axis=0, ddof=1) / math.sqrt(draws)
    assert np.all(np.abs(np.mean(samples, axis=0) - exact) <= 4 * error)
    assert np.all(error <= 0.02 * np.abs(exact))


# ------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_in_the_inputs(name, float64):
    layer = ACTIVATIONS[name][0]()
    net = nn.serial(nn.dense(5), layer, nn.dense(1))
    x1 = np.array([[1.0, -2.0, 0.5], [2.0, 1.0, 0.0], [0.3, 0.1, -0.7]])
    x2 = np.array([[1.0, -2.0, 0.5], [-0.4, 0.8, 2.0]])  # equal to x1[0]; orthogonal to x1[1]
    weight = np.array([[1.0, 0.5], [-2.0, 1.5], [0.7, 1.1]])

    @jax.jit
    def total(x1):
        kernel = net.kernel(limit.inputs(x1, jnp.asarray(x2)))
        return jnp.sum(weight * kernel.nngp)

    gradient, step = jax.jit(jax.grad(total))(x1), 1e-5
    for index in np.ndindex(x1.shape):
        shift = np.zeros_like(x1)
        shift[index] = step
        difference = (total(x1 + shift) - total(x1 - shift)) / (2 * step)
        np.testing.assert_allclose(gradient[index], difference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_are_finite_where_the_kernel_has_kinks(name):
    layer = ACTIVATIONS[name][0]()
    net = nn.serial(nn.dense(5), layer, nn.dense(1))
    x = jnp.asarray([[1.0, -2.0], [0.0, 0.0], [1.0, -2.0], [-2.0, 4.0], [2.0, 1.0]], "float32")

    def total(x1, x2):
        kernel = net.kernel(limit.inputs(x1, x2))
        return jnp.sum(kernel.nngp) + jnp.sum(kernel.ntk)

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(x, x):
        assert jnp.all(jnp.isfinite(gradient))
    paired = jax.jit(jax.grad(lambda x: jnp.sum(net.kernel(limit.paired_inputs(x)).ntk)))(x)
    assert jnp.all(jnp.isfinite(paired))


# ---------------------------------------------------------------------------------- refusals

custom = nn.dense(4, weight_init=nn.initializers.he_normal())
REFUSED = {
    "raw inputs": (nn.serial(nn.relu(), nn.dense(4)), "relu.kernel: the features"),
    "twice": (nn.serial(nn.dense(4), nn.erf(), nn.abs()), "abs.kernel: the features"),
    "concatenated": (
        nn.serial(nn.parallel(nn.dense(2), nn.dense(3), combine="concatenate"), nn.sin()),
        "sin.kernel: the features",
    ),
    "residual relu": (
        nn.serial(nn.dense(4), nn.residual(nn.serial(nn.relu(), nn.dense(4))), nn.relu(), nn.cos()),
        "cos.kernel: the features",
    ),
    "x + x": (nn.parallel(nn.identity(), nn.identity()), "parallel.kernel: the branches"),
    "x + relu x": (nn.serial(nn.dense(4), nn.residual(nn.relu())), "parallel.kernel: the branches"),
    "x + (x + Wx)": (
        nn.serial(nn.dense(4), nn.residual(nn.residual(nn.dense(4)))),
        "parallel.kernel: the branches of parallel: got 2 branches",
    ),
    "widths": (nn.residual(nn.dense(4)), "parallel.kernel: the branches of parallel: got widths"),
    "softmax": (nn.serial(nn.dense(4), nn.softmax()), "softmax.kernel: got a layer without"),
    "prelu": (nn.serial(nn.dense(4), nn.prelu()), "prelu.kernel: got a layer without"),
    "tanh": (nn.serial(nn.dense(4), nn.tanh(), nn.dense(1)), "tanh.kernel: got a layer without"),
    "swish": (nn.serial(nn.dense(4), nn.swish(2.0)), "swish.kernel: got a layer without"),
    "own": (nn.serial(nn.dense(4), nn.elementwise(jnp.cbrt)), "cbrt.kernel: got a layer without"),
    "weight_init": (custom, "dense with weight_init or bias_init.kernel: got"),
    "bias_init": (nn.dense(4, bias_init=nn.initializers.zeros()), "dense with weight_init"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_layer(name):
    net, message = REFUSED[name]
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r": got .*, expected .*\. ") as error:
        jax.eval_shape(net.kernel, limit.inputs(x, x))
    assert str(error.value).startswith(message)


def test_one_dependent_branch_is_no_refusal():
    x = jnp.ones((2, 3))
    kernel = limit.inputs(x, x)
    for branch in (nn.identity(), nn.residual(nn.dense(3)), nn.dropout(0.5), nn.flatten()):
        total = nn.parallel(branch, nn.dense(3)).kernel(kernel)
        np.testing.assert_allclose(total.nngp, branch.kernel(kernel).nngp + 2.0, rtol=1e-6)


def test_data_that_do_not_fit():
    bytes_, floats = jnp.full((2, 4), 200, jnp.uint8), jnp.ones((2, 4))
    with unchecked():  # 200·200 is no uint8
        for action, where in [
            (lambda: limit.inputs(bytes_, floats), "x1: got dtype uint8"),
            (lambda: limit.inputs(floats, bytes_), "x2: got dtype uint8"),
            (lambda: limit.paired_inputs(bytes_), "x: got dtype uint8"),
        ]:
            with pytest.raises(ValueError, match="expected real floating point") as error:
                action()
            assert str(error.value).startswith(where)
        with pytest.raises(TypeError, match=r"\(4,\) and \(1,\)"):
            limit.inputs(floats, jnp.ones((3, 1)))


def test_accelerators_are_asked_for_full_precision():
    x = jnp.ones((2, 3))
    assert "HIGHEST" in str(jax.make_jaxpr(limit.inputs)(x, x))

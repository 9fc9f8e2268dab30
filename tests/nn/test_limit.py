"""Networks of infinite width against a NumPy recursion and against random networks."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_pairs import ACTIVATIONS, NUMERICAL, SLOPE, covariance
from oracles import unchecked

from jaxnn import nn
from jaxnn.nn import limit


def data():
    """x1 and x2 in float64, of numbers that float32 holds."""
    rng = np.random.default_rng(8)
    x1, x2 = rng.normal(size=(3, 5)), 1.7 * rng.normal(size=(2, 5))
    return x1.astype(np.float32).astype(np.float64), x2.astype(np.float32).astype(np.float64)


def infinite(net, x1, x2):
    return jax.jit(lambda x1, x2: net.kernel(limit.inputs(x1, x2)))(x1, x2)


def recursion(name, widths, weight_std, bias_std, parametrization):
    """NNGP and NTK of a multilayer perceptron, pair by pair, in float64 with `expectation`."""
    _, phi, slope = ACTIVATIONS[name]
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
        ("gelu", (9, 6, 8, 4)),
        ("rectified square", (9, 4)),
        ("tanh", (8, 7, 9, 6, 4)),
        ("swish", (9, 6, 4)),
        ("elu", (8, 9, 4)),
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
            tolerance = 1e-10 if name in NUMERICAL else 1e-13
            np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * size)
        assert (kernel.width, kernel.depth, kernel.gaussian) == (widths[-1], len(widths), True)


def test_float32_is_float64_rounded():
    layer = nn.dense(4, weight_std=1.3, bias_std=0.4)
    net = nn.serial(layer, nn.relu(), layer, nn.erf(), layer, nn.abs(), layer, nn.sin(), layer)
    narrow = infinite(net, *(x.astype(np.float32) for x in data()))
    with jax.enable_x64(True):
        wide = infinite(net, *data())
    for moment in ("nngp", "ntk", "covariance1", "covariance2"):
        value, exact = getattr(narrow, moment), np.asarray(getattr(wide, moment))
        assert (value.dtype, exact.dtype) == ("float32", "float64")
        np.testing.assert_allclose(value, exact, rtol=0, atol=1e-5 * np.max(np.abs(exact)))


def test_the_diagonal_has_no_cancellation_error(dtype):
    # Parallel features: E[φφ] = v/2 and E[φ'φ'] = 1/2 at every layer.
    x = data()[0].astype(dtype)
    net = nn.mlp((8, 6, 2), weight_std=1.1, bias_std=0.3)
    kernel = jax.jit(lambda x: net.kernel(limit.inputs(x)))(x)
    w2, b2, v, theta = 1.1**2, 0.3**2, np.mean(data()[0] ** 2, axis=1), 0.0
    for below in (5, 8, 6):
        v, theta = (v, theta) if below == 5 else (v / 2, theta / 2)
        v, theta = w2 * v + b2, w2 * theta + below * v + 1
    np.testing.assert_allclose(np.diag(kernel.ntk), theta, rtol=20 * np.finfo(dtype).eps)
    for moment in (np.diag(kernel.nngp), kernel.covariance1[:, 0], kernel.covariance2[0]):
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_are_finite_where_the_kernel_has_kinks(name):
    layer = ACTIVATIONS[name][0]()
    net = nn.serial(nn.dense(5), layer, nn.dense(1))
    x = jnp.asarray([[0.5, -1.0], [0.0, 0.0], [0.5, -1.0], [-1.0, 2.0], [1.0, 0.5]], "float32")

    def total(x1, x2):
        kernel = net.kernel(limit.inputs(x1, x2))
        return jnp.sum(kernel.nngp) + jnp.sum(kernel.ntk)

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(x, x):
        assert jnp.all(jnp.isfinite(gradient))
    twins = jax.jit(jax.grad(lambda x: jnp.sum(net.kernel(limit.inputs(x)).ntk)))(x)
    assert jnp.all(jnp.isfinite(twins))


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
    "max pool": (nn.max_pool((2,)), "max_pool.kernel: got a layer without"),
    "batch norm": (nn.serial(nn.dense(4), nn.batch_norm()), "batch_norm.kernel: got a layer"),
    "flat": (nn.conv(4, (3,)), "conv.kernel: the spatial axes: got 0 of them"),
    "attention": (nn.self_attention(1), "self_attention(scaling='root').kernel: got a layer"),
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
    for pair in ((bytes_, floats), (bytes_, bytes_.astype(bool)), (floats, bytes_)):
        for value in (limit.inputs(*pair).nngp, limit.inputs(*pair[::-1]).nngp):  # 200·1 > 255
            np.testing.assert_array_equal(value, np.full((2, 2), 200.0))
    np.testing.assert_array_equal(limit.inputs(bytes_).nngp, np.full((2, 2), 4e4))
    half = limit.inputs(jnp.full((2, 4), 300.0, "float16"))  # 300² is no float16
    np.testing.assert_array_equal(half.nngp, np.full((2, 2), 9e4))
    with unchecked():
        with pytest.raises(ValueError, match="got dtype complex64, expected real numbers"):
            limit.inputs(floats.astype("complex64"))
        with pytest.raises((TypeError, ValueError)):
            limit.inputs(floats, jnp.ones((3, 1)))


def test_accelerators_are_asked_for_full_precision():
    x = jnp.ones((2, 3))
    assert "HIGHEST" in str(jax.make_jaxpr(limit.inputs)(x, x))

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import flat, unchecked

from jaxnn import nn
from jaxnn.nn import activations
from jaxnn.nn.layers import require_in_shape


def normal(seed, *shape, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def close(actual, exact, dtype="float32", factor=40):
    scale = max(1.0, np.max(np.abs(exact), initial=0.0))
    np.testing.assert_allclose(actual, exact, rtol=0, atol=factor * np.finfo(dtype).eps * scale)


def message_of(action):
    with pytest.raises(ValueError, match=r": got .*, expected .*\. ") as error:
        action()
    return str(error.value)


# ------------------------------------------------------------------------------------- dense


@pytest.mark.parametrize("batch", [(3,), (3, 2), (2, 4, 3)])
@pytest.mark.parametrize("bias_std", [0.0, 0.7])
def test_dense_is_affine_in_both_parametrizations(batch, bias_std, dtype):
    fan_in, features, weight_std = 5, 4, 1.3
    x, omega, beta = (
        normal(i, *shape, dtype=dtype)
        for i, shape in enumerate([(*batch, fan_in), (fan_in, features), (features,)])
    )
    options = {"weight_std": weight_std, "bias_std": bias_std}
    standard = nn.dense(features, **options)
    tangent = nn.dense(features, **options, parametrization="ntk")
    # The same ω, β: "standard" stores them scaled, "ntk" scales when applied.
    scaled = {"W": omega * dtype.type(weight_std / math.sqrt(fan_in))}
    scaled["b"] = beta * dtype.type(bias_std)
    stored = {"W": omega, "b": beta} if bias_std else {"W": omega}
    exact = np.einsum("...i,ij->...j", x.astype(float), omega.astype(float))
    exact = weight_std / math.sqrt(fan_in) * exact + bias_std * beta.astype(float)
    for layer, params in ((standard, scaled), (tangent, stored)):
        y = layer.apply(params, jnp.asarray(x))
        assert y.dtype == dtype
        close(y, exact, dtype)
        shape = layer.init(jax.random.key(0), (*batch[1:], fan_in))[1]
        assert shape == y.shape[1:]


@pytest.mark.parametrize(
    ("parametrization", "weight_std", "bias_std", "stored_weight", "stored_bias"),
    [
        ("standard", 1.3, 0.7, 1.3 / math.sqrt(30), 0.7),
        ("ntk", 1.3, 0.7, 1.0, 1.0),
        ("standard", 0.4, 0.0, 0.4 / math.sqrt(30), 0.0),
        ("ntk", 0.4, 0.0, 1.0, None),
    ],
)
def test_dense_draws_normal_numbers(
    parametrization, weight_std, bias_std, stored_weight, stored_bias, dtype
):
    options = {"weight_std": weight_std, "bias_std": bias_std, "parametrization": parametrization}
    params, out_shape = nn.dense(2000, **options).init(jax.random.key(1), (7, 30))
    assert out_shape == (7, 2000)
    assert params["W"].shape == (30, 2000)
    assert set(params) == ({"W"} if stored_bias is None else {"W", "b"})
    assert all(p.dtype == dtype for p in params.values())
    for name, std in (("W", stored_weight), ("b", stored_bias)):
        if std == 0.0:
            np.testing.assert_array_equal(params[name], np.zeros(2000))
        elif std is not None:
            sample = flat(params[name]) / std
            n = sample.size
            assert abs(np.mean(sample)) <= 4 / math.sqrt(n)
            assert abs(np.mean(sample**2) - 1) <= 4 * math.sqrt(2 / n)
            assert abs(np.mean(sample**4) - 3) <= 4 * math.sqrt(96 / n)  # normal, not truncated
    if stored_bias:
        shared = flat(params["W"][0]) @ flat(params["b"]) / (2000 * stored_weight * stored_bias)
        assert abs(shared) <= 4 / math.sqrt(2000)  # W and b have keys of their own


@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_dense_outputs_have_the_promised_variance(parametrization):
    n, x = 20000, jnp.array([[1.0, -2.0, 0.5]])
    layer = nn.dense(n, weight_std=1.5, bias_std=0.6, parametrization=parametrization)
    params, _ = layer.init(jax.random.key(2), (3,))
    y = flat(layer.apply(params, x))
    exact = 1.5**2 * np.mean(flat(x) ** 2) + 0.6**2
    assert abs(np.mean(y**2) - exact) <= 4 * math.sqrt(2 / n) * exact


def test_dense_takes_other_initializers():
    for parametrization in ("standard", "ntk"):
        layer = nn.dense(
            2,
            parametrization=parametrization,
            weight_init=lambda key, shape, dtype: jnp.full(shape, 3.0, dtype),
            bias_init=lambda key, shape, dtype: jnp.full(shape, 5.0, dtype),
        )
        params, _ = layer.init(jax.random.key(0), (4,))
        np.testing.assert_array_equal(params["W"], np.full((4, 2), 3.0))
        np.testing.assert_array_equal(params["b"], [5.0, 5.0])


def test_dense_under_jit_vmap_and_grad(float64):
    layer = nn.dense(2, weight_std=1.1, bias_std=0.4, parametrization="ntk")
    keys = jax.random.split(jax.random.key(0), 3)
    init = jax.jit(lambda key: layer.init(key, (4,))[0])
    batch = jax.vmap(init)(keys)
    x = jnp.asarray(normal(0, 5, 4, dtype=float64))
    y = jax.jit(jax.vmap(layer.apply, in_axes=(0, None)))(batch, x)
    for i, key in enumerate(keys):
        params = init(key)
        close(flat(jax.tree.map(lambda p, i=i: p[i], batch)), flat(params), float64)
        close(y[i], layer.apply(params, x), float64)
    gradient = jax.grad(lambda p: jnp.sum(layer.apply(p, x)))(init(keys[0]))
    close(gradient["W"], 1.1 / 2 * np.outer(np.sum(x, axis=0), np.ones(2)), float64)
    close(gradient["b"], [2.0, 2.0], float64)  # 5 examples times 0.4


def test_dense_refuses_bad_options():
    with unchecked():
        for features in (0, -3, 2.5, 4.0, "4", None):
            message = message_of(lambda f=features: nn.dense(f))
            assert message.startswith(f"dense(features): got {features}, expected an integer ≥ 1.")
        message = message_of(lambda: nn.dense(3, parametrization="NTK"))
        assert message.startswith("dense(parametrization): got 'NTK', expected 'standard' or 'ntk'")
        for name in ("weight_std", "bias_std"):
            for std in (-0.1, math.inf, math.nan):
                message = message_of(lambda n=name, s=std: nn.dense(3, **{n: s}))
                assert message.startswith(f"dense({name}): got {std}, expected a number in [0, inf")


def test_dense_refuses_inputs_of_another_shape():
    layer = nn.dense(3)
    params, _ = layer.init(jax.random.key(0), (5,))
    for shape in [(5,), (), (2, 4), (5, 1), (2, 5, 6)]:
        message = message_of(lambda s=shape: layer.apply(params, jnp.ones(s)))
        assert message.startswith(f"dense.apply: x: got shape {shape}, expected (N, ..., 5), batch")
    message = message_of(lambda: jax.jit(layer.apply)(params, jnp.ones((2, 4))))
    assert "got shape (2, 4)" in message


# ----------------------------------------------------------------------------- input shapes

LAYERS = {
    "dense": partial(nn.dense, 3),
    "flatten": nn.flatten,
    "identity": nn.identity,
    "dropout": partial(nn.dropout, 0.5),
    "relu": nn.relu,
    "prelu": nn.prelu,
    "softmax": nn.softmax,
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("in_shape", [[4], 4, (0,), (-1, 4), (None, 4), (4.0,), None, "4"])
def test_shapes_that_are_none(name, in_shape):
    with unchecked():
        message = message_of(lambda: LAYERS[name]().init(jax.random.key(0), in_shape))
    assert message.startswith(f"{name}.init: in_shape: got {in_shape!r}, expected a tuple of at ")
    assert "without the batch axis. For data x pass x.shape[1:]." in message


def test_dense_needs_an_axis():
    message = message_of(lambda: nn.dense(3).init(jax.random.key(0), ()))
    assert "got (), expected a tuple of at least 1 integers ≥ 1" in message
    assert nn.relu().init(jax.random.key(0), ()) == ((), ())


def test_numpy_integers_are_sizes():
    with unchecked():
        features, size = np.int64(3), np.prod(np.ones((2, 2, 4)).shape)
        net = nn.serial(nn.dense(features), nn.dense(2))
        assert net.init(jax.random.key(0), (size,))[1] == (2,)
        require_in_shape("dense", (np.int32(4),), min_rank=1)


# ----------------------------------------------------------------- flatten, identity, dropout


@pytest.mark.parametrize("in_shape", [(), (3,), (2, 3), (4, 1, 5)])
def test_flatten_is_c_order(in_shape):
    params, out_shape = nn.flatten().init(jax.random.key(0), in_shape)
    x = normal(0, 2, *in_shape)
    y = nn.flatten().apply(params, jnp.asarray(x))
    np.testing.assert_array_equal(y, x.reshape(2, -1))
    assert y.shape[1:] == out_shape
    assert params == ()


def test_identity():
    x = jnp.asarray(normal(0, 2, 3))
    assert nn.identity().init(jax.random.key(0), (3,)) == ((), (3,))
    assert nn.identity().apply((), x, key=jax.random.key(0)) is x


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation(p, dtype):
    n = 20000
    x = jnp.asarray(normal(0, n, 1, dtype=dtype))
    layer = nn.dropout(p)
    params, out_shape = layer.init(jax.random.key(0), (1,))
    assert (params, out_shape) == ((), (1,))
    y = layer.apply(params, x, key=jax.random.key(3))
    assert y.dtype == dtype
    dropped = flat(y) == 0
    close(flat(y)[~dropped], flat(x)[~dropped] / (1 - p), dtype)
    assert abs(np.mean(dropped) - p) <= 4 * math.sqrt(p * (1 - p) / n)
    # E[y] = x: Σxy/Σx² has mean 1 and variance Σx⁴·p/(1-p)/(Σx²)².
    square = flat(x) ** 2
    error = math.sqrt(np.sum(square**2) * p / (1 - p)) / np.sum(square)
    assert abs(flat(x) @ flat(y) / np.sum(square) - 1) <= 4 * error + 1e-6


def test_dropout_is_decided_by_its_key():
    layer, x = nn.dropout(0.5), jnp.ones((4, 50))
    once, again, other = (layer.apply((), x, key=jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert np.any(once != other)
    assert np.any(once[0] != once[1])  # examples are dropped independently
    assert layer.apply((), x) is x
    np.testing.assert_array_equal(jax.jit(layer.apply)((), x), x)


def test_dropout_passes_gradients_through_kept_units():
    layer, x, key = nn.dropout(0.25), jnp.ones((3, 40)), jax.random.key(0)
    kept = layer.apply((), x, key=key) > 0
    gradient = jax.grad(lambda x: jnp.sum(layer.apply((), x, key=key)))(x)
    close(gradient, np.asarray(kept) / 0.75)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_dropout_refuses_probabilities_outside(p):
    message = message_of(lambda: nn.dropout(p))
    assert message.startswith(f"dropout(drop_probability): got {p}, expected a number in [0, 1).")


# -------------------------------------------------------------------------------- activations


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        *((getattr(nn, name)(), getattr(activations, name)) for name in (
            "relu", "leaky_relu", "abs", "erf", "sin", "cos", "sigmoid", "tanh", "elu", "selu",
            "swish", "gelu", "gelu_tanh", "softplus", "threshold", "softmax",
        )),
        (nn.leaky_relu(0.3), partial(activations.leaky_relu, slope=0.3)),
        (nn.elu(0.3), partial(activations.elu, alpha=0.3)),
        (nn.swish(0.3), partial(activations.swish, beta=0.3)),
    ],
)  # fmt: skip
def test_activation_layers_apply_their_function(layer, function, dtype):
    params, out_shape = layer.init(jax.random.key(0), (2, 3))
    assert (params, out_shape) == ((), (2, 3))
    x = jnp.asarray(normal(0, 4, 2, 3, dtype=dtype))
    y = layer.apply(params, x, key=jax.random.key(0), stats=None)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, function(x))


@pytest.mark.slow
def test_elementwise_takes_any_function():
    layer = nn.elementwise(lambda x: x**3)
    x = jnp.asarray(normal(0, 2, 3))
    np.testing.assert_array_equal(layer.apply((), x), x**3)
    close(jax.grad(lambda x: jnp.sum(layer.apply((), x)))(x), 3 * x**2)
    kernel = nn.dense(1).kernel(nn.limit.inputs(x, x))
    for moment in ("nngp", "ntk"):
        exact = getattr(nn.monomial(3).kernel(kernel), moment)
        close(getattr(layer.kernel(kernel), moment), exact)
    with pytest.raises(ValueError, match=r"^cube\.kernel: the features entering cube"):
        nn.elementwise(lambda x: x**3, name="cube").kernel(nn.limit.inputs(x, x))
    with pytest.raises(ValueError, match=r"^partial\.kernel"):
        nn.elementwise(partial(jnp.power, 2.0)).kernel(nn.limit.inputs(x, x))


def test_elementwise_takes_a_dual():
    # φ(u) = u² has E[φφ] = v₁v₂ + 2k² (Isserlis) and E[φ'φ'] = 4k.
    layer = nn.elementwise(jnp.square, dual=lambda k, v1, v2: (v1 * v2 + 2 * k**2, 4 * k))
    x = jnp.asarray(normal(0, 2, 3))
    kernel = nn.dense(1, parametrization="ntk").kernel(nn.limit.inputs(x, x))
    squared, k = layer.kernel(kernel), np.asarray(kernel.nngp)
    v = np.diag(k)
    close(squared.nngp, np.outer(v, v) + 2 * k**2)
    close(squared.ntk, kernel.ntk * 4 * k)
    close(squared.covariance1[:, 0], 3 * v**2)
    close(squared.covariance2[0], 3 * v**2)


@pytest.mark.parametrize("slope", [math.nan, math.inf, -math.inf])
def test_leaky_relu_refuses_slopes_that_are_no_numbers(slope):
    message = message_of(lambda: nn.leaky_relu(slope))
    assert message.startswith(f"leaky_relu(slope): got {slope}, expected a number in (-inf, inf)")


def test_prelu_learns_its_slope(dtype):
    layer = nn.prelu(0.3)
    params, out_shape = layer.init(jax.random.key(0), (2, 3))
    assert out_shape == (2, 3)
    assert (params["slope"].shape, params["slope"].dtype) == ((), dtype)
    x = normal(0, 4, 2, 3, dtype=dtype)
    y = layer.apply(params, jnp.asarray(x))
    close(y, np.where(x > 0, x, 0.3 * x), dtype)
    weight = normal(1, 4, 2, 3, dtype=dtype)
    by_slope, by_x = jax.grad(lambda p, x: jnp.sum(weight * layer.apply(p, x)), argnums=(0, 1))(
        params, jnp.asarray(x)
    )
    close(by_slope["slope"], np.sum((weight * x)[x < 0], dtype=float), dtype)
    close(by_x, weight * np.where(x > 0, 1.0, 0.3), dtype)


def test_lengths_of_bytes_count_more_than_255_times():
    values = jnp.ones((2, 300, 1))
    for kind in (jnp.uint8, jnp.int8, jnp.int32):
        mask = nn.Sequences(values, jnp.array([3, 100], kind)).mask()
        np.testing.assert_array_equal(np.sum(mask, axis=1), [3, 100])
        np.testing.assert_array_equal(mask[:, :3], True)

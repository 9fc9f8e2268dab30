import itertools
import math

import flax.linen as flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks_compared import check_derivatives, close, drawn, message_of, normal
from oracles import flat, unchecked

from jaxnn import nn


def borders(padding, n, covered, stride):
    """Entries added before an axis, by TensorFlow's rule for SAME."""
    if padding == "SAME":
        return max((-(-n // stride) - 1) * stride + covered - n, 0) // 2
    return (covered - 1) // 2 if padding == "CIRCULAR" else 0


def loop(x, weight, bias, out_shape, *, strides, padding, dilation, groups):
    """The sum of the docstring, term by term."""
    x, weight = np.asarray(x, float), np.asarray(weight, float)
    *spatial, channels = x.shape[1:]
    window, features = weight.shape[:-2], weight.shape[-1]
    y = np.zeros((len(x), *out_shape)) + np.asarray(bias, float)
    for place in itertools.product(*map(range, out_shape[:-1])):
        for offset in itertools.product(*map(range, window)):
            at = []
            for i, a, n, k, s, d in zip(
                place, offset, spatial, window, strides, dilation, strict=True
            ):
                at.append(i * s + a * d - borders(padding, n, (k - 1) * d + 1, s))
            if padding == "CIRCULAR":
                at = [i % n for i, n in zip(at, spatial, strict=True)]
            elif any(not 0 <= i < n for i, n in zip(at, spatial, strict=True)):
                continue
            for c in range(features):
                group = c // (features // groups)
                part = channels // groups
                seen = x[(slice(None), *at)][:, group * part : (group + 1) * part]
                y[(slice(None), *place, c)] += seen @ weight[(*offset, slice(None), c)]
    return y


CASES = [
    ((7,), (3,), {"padding": "SAME", "strides": (2,)}),
    ((7,), (4,), {"padding": "CIRCULAR", "dilation": (3,)}),
    ((6, 5), (3, 2), {"padding": "VALID", "strides": (1, 2), "groups": 2}),
    ((6, 5), (3, 4), {"padding": "SAME", "dilation": (2, 1)}),
    ((5, 6), (2, 3), {"padding": "CIRCULAR", "strides": (2, 3), "groups": 4}),
    ((4, 3, 5), (2, 3, 1), {"padding": "SAME", "strides": (1, 1, 2)}),
    ((3, 4, 3), (2, 2, 2), {"padding": "VALID"}),
]


def check_conv(spatial, window, options, dtype):
    channels, features = 4, 8
    layer = nn.conv(features, window, bias_std=0.5, **options)
    params, out_shape = drawn(layer, (*spatial, channels), dtype)
    x = normal(5, 2, *spatial, channels, dtype=dtype)
    ones = (1,) * len(window)
    full = {"strides": ones, "dilation": ones, "groups": 1, **options}
    theirs = flax.Conv(
        features, window, full["strides"], options["padding"],
        kernel_dilation=full["dilation"], feature_group_count=full["groups"],
    )  # fmt: skip
    variables = {"params": {"kernel": params["W"], "bias": params["b"]}}
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        y = jax.jit(layer.apply)(params, x)
    assert (y.shape[1:], y.dtype) == (out_shape, dtype)
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    close(y, loop(x, params["W"], params["b"], out_shape, **full), tolerance)
    close(y, jax.jit(theirs.apply)(variables, x), tolerance)


@pytest.mark.parametrize(("spatial", "window", "options"), CASES)
def test_conv_equals_a_loop_and_flax(spatial, window, options, standard_promotion):
    check_conv(spatial, window, options, jnp.dtype("float32"))


def test_conv_in_double_precision(float64, standard_promotion):
    check_conv(*CASES[4], float64)


def test_conv_draws_normal_numbers_and_keeps_the_variance():
    options = {"weight_std": 1.3, "bias_std": 0.6}
    fan_in = 5 * 6
    for parametrization, weight_std, bias_std in (
        ("standard", 1.3 / math.sqrt(fan_in), 0.6),
        ("ntk", 1.0, 1.0),
    ):
        layer = nn.conv(3000, (5,), groups=2, parametrization=parametrization, **options)
        params, _ = layer.init(jax.random.key(0), (9, 12))
        assert params["W"].shape == (5, 6, 3000)
        for name, std in (("W", weight_std), ("b", bias_std)):
            sample = flat(params[name]) / std
            assert abs(np.mean(sample**2) - 1) <= 4 * math.sqrt(2 / sample.size)
        x = normal(1, 1, 9, 12)
        y = layer.apply(params, x)[0, 4]  # a place that sees no border
        for half, group in ((y[:1500], x[0, 2:7, :6]), (y[1500:], x[0, 2:7, 6:])):
            exact = 1.3**2 * np.mean(flat(group) ** 2) + 0.6**2
            assert abs(np.mean(flat(half) ** 2) - exact) <= 4 * math.sqrt(2 / 1500) * exact
    assert set(nn.conv(2, (3,), parametrization="ntk").init(jax.random.key(0), (5, 1))[0]) == {"W"}


def test_circular_convolution_commutes_with_shifts():
    layer = nn.conv(3, (3, 4), padding="CIRCULAR", dilation=(1, 2))
    params, _ = drawn(layer, (5, 6, 2), "float32")
    x = normal(0, 2, 5, 6, 2)
    shifted = layer.apply(params, jnp.roll(x, (2, 1), (1, 2)))
    close(shifted, jnp.roll(layer.apply(params, x), (2, 1), (1, 2)))


TRANSPOSED = [
    ((5,), (3,), {"strides": (2,)}),
    ((5,), (2,), {"strides": (3,)}),
    ((4, 5), (4, 3), {"strides": (2, 1)}),
    ((4, 3), (3, 2), {"dilation": (2, 1), "strides": (1, 2)}),
    ((2, 3, 2), (2, 3, 2), {"strides": (2, 1, 2)}),
]


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
@pytest.mark.parametrize(("spatial", "window", "options"), TRANSPOSED)
def test_conv_transpose(spatial, window, options, padding, float64, standard_promotion):
    channels, features = 3, 2
    layer = nn.conv_transpose(features, window, padding=padding, bias_std=0.5, **options)
    params, out_shape = drawn(layer, (*spatial, channels), float64)
    x = normal(5, 2, *spatial, channels, dtype=float64)
    # The transpose of conv: the window flipped, channels and features exchanged.
    axes = tuple(range(len(window)))
    back = nn.conv(channels, window, padding=padding, **options)
    image = jax.ShapeDtypeStruct((2, *out_shape), float64)
    theirs = flax.ConvTranspose(
        features, window, options.get("strides"), padding, kernel_dilation=options.get("dilation")
    )

    @jax.jit
    def three(params, x):
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            y = layer.apply(params, x)
        flipped = jnp.swapaxes(jnp.flip(params["W"], axes), -1, -2)
        linear = lambda z: back.apply({"W": flipped}, z)
        assert jax.eval_shape(linear, image).shape == x.shape
        variables = {"params": {"kernel": params["W"], "bias": params["b"]}}
        (transposed,) = jax.linear_transpose(linear, image)(x)
        return y, transposed + params["b"], theirs.apply(variables, x)

    y, transposed, other = three(params, x)
    assert y.shape[1:] == out_shape
    close(y, transposed, 1e-13)
    # flax's circle of outputs starts one place earlier where a stride exceeds what the border has.
    shift = -1 if padding == "CIRCULAR" and options.get("strides") == (2,) else 0
    close(y, np.roll(other, shift, 1), 1e-13)


def test_derivatives_are_finite_differences(float64):
    up = nn.conv_transpose(2, (3, 2), strides=(2, 1), bias_std=0.3, parametrization="ntk")
    down = nn.conv(4, (2, 3), padding="CIRCULAR", strides=(1, 2), bias_std=0.3, groups=2)
    net = nn.serial(up, nn.tanh(), down)
    params, _ = drawn(net, (3, 4, 2), float64)
    x = normal(9, 2, 3, 4, 2, dtype=float64)
    check_derivatives(net.apply, params, x)


def test_refusals():
    key = jax.random.key(0)
    with unchecked():
        for action, start in [
            (lambda: nn.conv(0, (3,)), "conv(features): got 0, expected an integer ≥ 1"),
            (lambda: nn.conv(2, 3), "conv(window): got 3, expected a tuple of integers ≥ 1"),
            (lambda: nn.conv(2, ()), "conv(window): got 0 sizes, expected 1 to 3"),
            (lambda: nn.conv(2, (1,) * 4), "conv(window): got 4 sizes"),
            (
                lambda: nn.conv(2, (3, 3), strides=(2,)),
                "conv(strides): got (2,), expected a tuple ",
            ),
            (lambda: nn.conv(2, (3,), dilation=(0,)), "conv(dilation): got (0,)"),
            (
                lambda: nn.conv(2, (3,), padding="same"),
                "conv(padding): got 'same', expected 'SAME'",
            ),
            (lambda: nn.conv(2, (3,), weight_std=-1.0), "conv(weight_std): got -1.0"),
            (lambda: nn.conv(4, (3,), groups=2).init(key, (5, 3)), "conv(groups): got 2, expected"),
            (lambda: nn.conv(2, (3,)).init(key, (5, 5, 1)), "conv.init: in_shape: got (5, 5, 1)"),
            (lambda: nn.conv(2, (4,), padding="VALID").init(key, (3, 1)), "conv.init: the spatial"),
            (
                lambda: nn.conv_transpose(2, (3, 3)).init(key, (5, 1)),
                "conv_transpose.init: in_shap",
            ),
        ]:
            assert message_of(action).startswith(start)
    kernel = nn.limit.inputs(jnp.ones((2, 3)), jnp.ones((2, 3)))
    for layer in (nn.conv(2, (3,)), nn.conv_transpose(2, (3,))):
        params, _ = drawn(layer, (5, 3), "float32")
        for shape in [(5, 3), (2, 5, 4), (2, 5, 5, 3)]:
            message = message_of(lambda s=shape, n=layer, p=params: n.apply(p, jnp.ones(s)))
            assert message.startswith(f"{layer.name}.apply: x: got shape {shape}, expected (N, 1 ")
        assert message_of(lambda n=layer: n.kernel(kernel)).startswith(f"{layer.name}.kernel: ")

"""Limits of layers that know positions, against random networks and NumPy loops."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks_compared import message_of

from jaxnn import kernels, nn
from jaxnn.nn import limit
from jaxnn.nn.positions import Positions
from jaxnn.nn.windows import windows

conv = partial(nn.conv, weight_std=1.2, bias_std=0.5)
tangent = partial(nn.conv, weight_std=1.2, bias_std=0.5, parametrization="ntk")
dense = partial(nn.dense, weight_std=1.2, bias_std=0.5)
# In all of these the expectation over random networks is the limit at any width: only one layer
# of weights reads random features, and it reads Gaussian ones.
EXACT = {
    "flatten": ((5, 2), nn.serial(conv(4, (3,)), nn.relu(), nn.flatten(), dense(3))),
    "dense at places": ((4, 2), nn.serial(dense(4), nn.erf(), dense(3), nn.flatten())),
    "strided": (
        (6, 2),
        nn.serial(tangent(3, (3,), strides=(2,)), nn.erf(), tangent(2, (2,)), nn.flatten()),
    ),
    "dilated": (
        (6, 2),
        nn.serial(
            conv(4, (2,), dilation=(2,), padding="VALID"),
            nn.abs(),
            conv(3, (2,), padding="CIRCULAR"),
            nn.flatten(),
        ),
    ),
    "global": (
        (3, 4, 2),
        nn.serial(
            conv(4, (2, 3)), nn.relu(), nn.global_avg_pool(), dense(3)
        ),
    ),
    "global sum": (
        (3, 3, 2),
        nn.serial(
            tangent(3, (2, 2), padding="CIRCULAR"), nn.erf(), tangent(2, (2, 2)),
            nn.global_sum_pool(),
        ),
    ),
    "averages": (
        (5, 2),
        nn.serial(
            conv(3, (2,)), nn.relu(), conv(2, (3,)), nn.avg_pool((2,), padding="SAME"), nn.flatten()
        ),
    ),
    "averages with the border": (
        (5, 2),
        nn.serial(
            tangent(3, (2,)),
            nn.avg_pool((2,), strides=(1,), padding="SAME", count_padding=True),
            nn.relu(),
            nn.flatten(),
            dense(2),
        ),
    ),
    "sums": (
        (2, 4, 3, 1),
        nn.serial(
            conv(2, (1, 2, 2)), nn.sum_pool((2, 2, 1), padding="CIRCULAR"), nn.erf(), nn.flatten(),
            dense(2),
        ),
    ),
    "residual": (
        (4, 2),
        nn.serial(
            conv(3, (3,)), nn.residual(nn.serial(nn.relu(), conv(3, (3,)))), nn.global_avg_pool()
        ),
    ),
    "product": ((3,), nn.parallel(dense(4), nn.serial(dense(4)), combine="product")),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_the_limit_is_the_mean_over_random_networks(name, float64):
    in_shape, net = EXACT[name]
    rng = np.random.default_rng(5)
    x1, x2 = (jnp.asarray(rng.normal(size=(n, *in_shape))) for n in (2, 3))
    key = jax.random.key(1, impl="unsafe_rbg")  # the generator that compiles fastest
    draw = partial(kernels.monte_carlo, net, num_samples=2000, batch_size=250)
    found = jax.jit(draw)(key, x1, x2)
    exact = jax.jit(partial(kernels.infinite, net))(x1, x2)
    for mean, error, known in [
        (found.nngp, found.nngp_error, exact.nngp),
        (found.ntk, found.ntk_error, exact.ntk),
    ]:
        assert known.shape == (2, 3)
        assert np.all(error <= 0.1 * np.max(np.abs(known)))
        assert np.all(np.abs(mean - known) <= 4 * error + 1e-12)


wide = partial(nn.conv, 512, (3,), bias_std=0.3)
flat = partial(nn.dense, 512, bias_std=0.3, parametrization="ntk")
sequence = partial(nn.rnn, 512, weight_std=1.3, recurrent_std=0.9, bias_std=0.3)
attention = partial(nn.self_attention, 4, scaling="linear", weight_std=1.3, bias_std=0.3)
WIDE = {
    "convolutions": (
        (6, 3),
        [wide(), nn.relu(), wide(), nn.relu(), nn.avg_pool((2,)), wide(), nn.erf()],
    ),
    "layer norm": (
        (4,),
        [flat(), nn.layer_norm(epsilon=0.1), flat(), nn.layer_norm(scale=False), nn.relu()],
    ),
    "bare layer norm": (
        (4,),
        [flat(), nn.layer_norm(scale=False), nn.erf(), flat(), nn.layer_norm(shift=False)],
    ),
    "attention": ((4, 3), [nn.dense(512), attention(), nn.relu()]),
    "causal attention": (
        (4, 3),
        [nn.dense(256), attention(features=512, causal=True, parametrization="ntk")],
    ),
    "recurrence": ((4, 3), [sequence()]),
    "recurrence over time": ((4, 3), [sequence(output="sequence", activation=nn.relu())]),
    "reversed recurrence": (
        (4, 3),
        [sequence(output="sequence", reverse=True, parametrization="ntk"), nn.global_avg_pool()],
    ),
    "two recurrences": (
        (3, 3),
        [sequence(output="sequence"), sequence(parametrization="ntk", activation=nn.erf())],
    ),
    "product": (
        (4,),
        [flat(), nn.relu(), nn.parallel(flat(), flat(), combine="product")],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_wide_networks_have_the_kernel_of_infinite_width(name):
    in_shape, layers = WIDE[name]
    net = nn.serial(*layers, nn.flatten(), nn.dense(1, parametrization="ntk"))
    x = jnp.asarray(np.random.default_rng(7).normal(size=(3, *in_shape)), "float32")
    found = jax.jit(partial(kernels.monte_carlo, net, num_samples=150, batch_size=5))(
        jax.random.key(3, impl="unsafe_rbg"), x
    )
    exact = jax.jit(partial(kernels.infinite, net))(x)
    for mean, error, known in [
        (found.nngp, found.nngp_error, exact.nngp),
        (found.ntk, found.ntk_error, exact.ntk),
    ]:
        size = np.max(np.abs(known))
        assert np.all(error <= 0.2 * size)
        # The expectation itself differs by O(1/width).
        assert np.all(np.abs(mean - known) <= 4 * error + 2e-3 * size)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
@pytest.mark.parametrize("strides", [1, 2])
def test_joint_and_separate_sums_are_those_of_loops(padding, strides):
    n, size, dilation = 6, 3, 2
    own = windows("conv", (size,), strides=(strides,), padding=padding, dilation=(dilation,))
    k = jnp.asarray(np.random.default_rng(2).normal(size=(n, n, 2, 3)), "float32")
    crossed, equal = Positions((n,), True), Positions((n,))
    reach = (size - 1) * dilation + 1
    m = crossed.moved(own).shape[0]
    low = {"VALID": 0, "CIRCULAR": (reach - 1) // 2}.get(
        padding, max((m - 1) * strides + reach - n, 0) // 2
    )

    def entry(i, j):
        if padding == "CIRCULAR":
            return np.asarray(k)[i % n, j % n]
        return np.asarray(k)[i, j] if 0 <= i < n and 0 <= j < n else 0.0

    at = lambda s, a: s * strides - low + a * dilation
    joint = crossed.joint_sum(k, own)
    separate = crossed.separate_sum(k, own)
    diagonal = equal.joint_sum(jnp.einsum("ssnm->snm", k), own)
    for s, t in product(range(m), repeat=2):
        both = sum(entry(at(s, a), at(t, a)) for a in range(size))
        each = sum(entry(at(s, a), at(t, b)) for a, b in product(range(size), repeat=2))
        np.testing.assert_allclose(joint[s, t], both, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(separate[s, t], each, rtol=1e-5, atol=1e-5)
        if s == t:
            np.testing.assert_allclose(diagonal[s], both, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["pooled", "recurrent"])
def test_pairs_of_equal_positions_need_no_others(name):
    layers = {
        "pooled": [conv(3, (3,)), nn.relu(), conv(3, (2,), strides=(2,)), nn.erf(), nn.flatten()],
        "recurrent": [nn.rnn(3, activation=nn.relu()), nn.dense(2)],
    }[name]
    net = nn.serial(*layers)
    x1, x2 = (
        jnp.asarray(np.random.default_rng(s).normal(size=(2, 5, 3)), "float32") for s in (0, 1)
    )
    few, all_ = (
        jax.jit(lambda a, b, crossed=crossed: net.kernel(limit.inputs(a, b, crossed=crossed)))(
            x1, x2
        )
        for crossed in (False, True)
    )
    assert not net.mixes_positions
    for moment in limit.MOMENTS:
        np.testing.assert_allclose(
            getattr(few, moment), getattr(all_, moment), rtol=1e-5, atol=1e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("output", ["last", "sequence"])
def test_a_recurrence_of_equal_times_is_its_part_of_all_times(output):
    net = nn.rnn(3, output=output, activation=nn.relu(), bias_std=0.3, reverse=True)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), "float32")
    few, all_ = (net.kernel(limit.inputs(x, crossed=crossed)) for crossed in (False, True))
    for moment in ("nngp", "ntk"):
        part = getattr(all_, moment)
        part = jnp.einsum("ttnm->tnm", part) if output == "sequence" else part
        np.testing.assert_allclose(getattr(few, moment), part, rtol=1e-5, atol=1e-6)


def test_equal_examples_have_exact_diagonals(dtype):
    # Relu at angle 0 gives v/2, also for equal positions of images: of all-positive sums.
    x = jnp.asarray(np.random.default_rng(3).normal(size=(4, 5, 2)), dtype)
    net = nn.serial(tangent(1, (3,)), nn.relu(), tangent(1, (3,)), nn.relu(), nn.flatten())
    for mixed in (False, True):
        kernel = jax.jit(lambda x, mixed=mixed: net.kernel(limit.inputs(x, crossed=mixed)))(x)
        np.testing.assert_allclose(
            np.diag(kernel.nngp), kernel.covariance1[:, 0], rtol=10 * np.finfo(dtype).eps
        )


def test_refusals():
    x = jnp.ones((2, 6, 6, 3))
    for net, start in [
        (nn.global_avg_pool(), "global_avg_pool.kernel: the covariances"),
        (nn.avg_pool((2, 2)), "avg_pool.kernel: the covariances"),
        (nn.avg_pool((2,)), "avg_pool.kernel: the spatial axes: got 2 of them"),
        (nn.conv(3, (3,)), "conv.kernel: the spatial axes: got 2 of them"),
        (
            nn.serial(nn.dense(3), nn.layer_norm(), nn.relu()),
            "relu.kernel: the features entering relu: got the output of a layer_norm with",
        ),
        (nn.rnn(3), "rnn.kernel: the axes between batch and features: got 2 of them, expected 1"),
        (
            nn.self_attention(1, scaling="linear"),
            "self_attention.kernel: the axes between batch and features: got 2 of them, expected 1",
        ),
        (nn.conv(3, (3, 3), groups=3), "conv with groups.kernel"),
        (nn.conv(3, (3, 3), bias_init=nn.initializers.zeros()), "conv with weight_init"),
        (nn.global_max_pool(), "global_max_pool.kernel: got a layer without"),
        (
            nn.parallel(nn.conv(3, (3, 3)), nn.conv(3, (3, 3), padding="VALID")),
            "parallel.kernel: the branches of parallel: got positions",
        ),
    ]:
        message = message_of(lambda net=net: net.kernel(limit.inputs(x)))
        assert message.startswith(start)

"""Aggregation, resizing, transposed convolutions, dropout and biasless layers, and their limits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks_compared import message_of
from oracles import unchecked

from jaxnn import kernels, nn
from jaxnn.nn import limit

dense = partial(nn.dense, weight_std=1.2, bias_std=0.5)
conv = partial(nn.conv, weight_std=1.2, bias_std=0.5)
spread = partial(nn.conv_transpose, weight_std=1.2, bias_std=0.5)
GRAPH = np.array([[0, 1, 2], [1, 0, 1], [0.5, 0, 1], [1, 1, -1]])
# In all of these the expectation over random networks is the limit at any width: only one layer
# of weights reads random features, and it reads Gaussian ones.
EXACT = {
    "graph": (
        (3, 2),
        nn.serial(nn.aggregate(GRAPH), dense(4), nn.relu(), nn.aggregate(GRAPH.T), dense(2),
                  nn.flatten()),
    ),
    "nearest": ((3, 2), nn.serial(conv(4, (2,)), nn.resize((5,), method="nearest"), nn.flatten())),
    "linear": (
        (3, 4, 1),
        nn.serial(conv(3, (2, 2)), nn.resize((2, 5)), nn.erf(), conv(2, (2, 2)), nn.flatten()),
    ),
    "transposed": (
        (3, 2), nn.serial(spread(4, (3,), strides=(2,)), nn.relu(), conv(2, (2,)), nn.flatten())
    ),
    "transposed, valid": (
        (3, 2),
        nn.serial(spread(3, (2,), strides=(3,), padding="VALID", dilation=(2,)),
                  nn.global_avg_pool()),
    ),
    "transposed, circular": (
        (2, 3, 1),
        nn.serial(spread(3, (4, 3), strides=(2, 1), padding="CIRCULAR"), nn.flatten()),
    ),
    "without bias": (
        (4,),
        nn.serial(nn.dense(5, bias_std=None), nn.relu(), nn.dense(3, bias_std=None)),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [n if n in ("transposed", "graph") else pytest.param(n, marks=pytest.mark.slow)
             for n in EXACT]
)  # fmt: skip
def test_the_limit_is_the_mean_over_random_networks(name, float64):
    in_shape, net = EXACT[name]
    rng = np.random.default_rng(5)
    x1, x2 = (jnp.asarray(rng.normal(size=(n, *in_shape))) for n in (2, 3))
    key = jax.random.key(1, impl="unsafe_rbg")  # the generator that compiles fastest
    draw = partial(kernels.monte_carlo, net, num_samples=1500, batch_size=250)
    found = jax.jit(draw)(key, x1, x2)
    exact = jax.jit(partial(kernels.infinite, net))(x1, x2)
    for mean, error, known in [
        (found.nngp, found.nngp_error, exact.nngp),
        (found.ntk, found.ntk_error, exact.ntk),
    ]:
        assert known.shape == (2, 3)
        assert np.all(error <= 0.1 * np.max(np.abs(known)))
        assert np.all(np.abs(mean - known) <= 4 * error + 1e-12)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
def test_a_transposed_window_reads_what_the_finite_layer_reads(padding):
    # With weights 1 and one channel y yᵀ of random data is the kernel of transposed patches.
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 5, 1)), "float32")
    for size, stride, dilation in [(4, 2, 1), (2, 3, 2)]:
        layer = nn.conv_transpose(
            1, (size,), strides=(stride,), padding=padding, dilation=(dilation,)
        )
        weights = jnp.eye(size)[:, :, None, None]
        reads = np.asarray(jax.jit(jax.vmap(lambda w, f=layer: f.apply({"W": w}, x)))(weights))
        exact = 2 * np.einsum("anic,amjc->ijnm", reads, reads) / size
        few, all_ = jax.jit(
            lambda x, f=layer: [f.kernel(limit.inputs(x, crossed=c)).nngp for c in (False, True)]
        )(x)
        np.testing.assert_allclose(all_, exact, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(few, np.einsum("ssnm->snm", exact), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("crossed", [False, True])
def test_dropout_meets_its_own_masks_on_the_diagonal(crossed, float64):
    # y = Wx with x's masks: over masks E[yy'] = K off the diagonal and K/(1 - p) on it.
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)))
    layer = nn.dropout(0.3, kernel="random")
    kernel = limit.inputs(x, crossed=crossed)
    kernel = nn.dense(5).kernel(kernel)
    dropped = layer.kernel(kernel)
    same = np.eye(3)[None] if not crossed else np.eye(4)[:, :, None, None] * np.eye(3)[None, None]
    factor = np.where(same, 1 / 0.7, 1.0)
    np.testing.assert_allclose(dropped.nngp, factor * kernel.nngp, rtol=1e-12)
    np.testing.assert_allclose(dropped.ntk, factor * kernel.ntk, rtol=1e-12)
    apart = layer.kernel(nn.dense(5).kernel(limit.inputs(x, x, crossed=crossed)))
    np.testing.assert_allclose(apart.nngp, kernel.nngp, rtol=1e-12)
    assert nn.dropout(0.3).kernel(kernel) is kernel


@pytest.mark.slow
def test_dropout_is_the_mean_over_masks(float64):
    net = nn.serial(dense(8), nn.relu(), nn.dropout(0.3, kernel="random"), dense(3))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(3, 4)))

    def one(key):
        params, _ = net.init(key, (4,))
        y, pull = jax.vjp(lambda p: net.apply(p, x, key=jax.random.fold_in(key, 7)), params)
        rows = jax.vmap(lambda t: pull(t)[0])(jnp.eye(9).reshape(9, 3, 3))
        flat = jnp.concatenate([j.reshape(3, 3, -1) for j in jax.tree.leaves(rows)], axis=-1)
        return y @ y.T / 3, jnp.einsum("iap,jap->ij", flat, flat) / 3

    keys = jax.random.split(jax.random.key(0, impl="unsafe_rbg"), 6000)
    samples = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=500))(keys)
    exact = kernels.infinite(net, x)
    for sample, known in zip(samples, (exact.nngp, exact.ntk), strict=True):
        error = np.std(sample, axis=0, ddof=1) / np.sqrt(len(keys))
        assert np.all(np.abs(np.mean(sample, axis=0) - known) <= 4 * error)


def test_layers_without_bias_have_none():
    for parametrization in ("standard", "ntk"):
        layer = nn.dense(3, bias_std=None, parametrization=parametrization)
        assert set(layer.init(jax.random.key(0), (2,))[0]) == {"W"}


@pytest.mark.parametrize("deep", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_standard_deviations_may_be_traced(deep, float64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)))

    def evidence(stds):
        w, b = stds
        options = {"weight_std": w, "bias_std": b, "parametrization": "ntk"}
        net = nn.serial(
            nn.conv(4, (3,), **options),
            nn.self_attention(1, scaling="linear", **options) if deep else nn.relu(),
            nn.rnn(4, activation=nn.erf(), recurrent_std=w, **options) if deep else nn.flatten(),
            nn.dense(1, **options),
        )
        params, _ = net.init(jax.random.key(0), (5, 3))
        kernel = kernels.infinite(net, x)
        return kernel.ntk[0, 1] + kernel.nngp[0, 0], net.apply(params, x)[0, 0]

    stds = np.array([1.1, 0.4])
    compiled = jax.jit(evidence)
    rows = jax.jit(jax.jacrev(evidence))(stds)
    shift = 1e-6 * np.eye(2)
    plus, minus = (np.array([compiled(stds + s * e) for e in shift]) for s in (1, -1))
    np.testing.assert_allclose(np.array(rows), (plus - minus).T / 2e-6, rtol=1e-5)


def test_refusals():
    x = jnp.ones((2, 3, 1))
    key = jax.random.key(0)
    with unchecked():
        for action, start in [
            (lambda: nn.aggregate(jnp.ones(3)), "aggregate(adjacency): got shape (3,)"),
            (lambda: nn.aggregate(GRAPH).init(key, (4, 2)), "aggregate.init: in_shape: got (4, 2)"),
            (lambda: nn.aggregate(GRAPH).apply((), jnp.ones((2, 4, 1))), "aggregate.apply: x: got"),
            (lambda: nn.resize((0,)), "resize(shape): got (0,)"),
            (lambda: nn.resize((3,), method="area"), "resize(method): got 'area'"),
            (lambda: nn.resize((3, 3)).init(key, (4, 2)), "resize.init: in_shape: got (4, 2)"),
            (lambda: nn.dropout(0.5, kernel="train"), "dropout(kernel): got 'train'"),
            (
                lambda: nn.dense(2, bias_std=None, bias_init=nn.initializers.zeros()),
                "dense(bias_init): got an initializer with bias_std=None",
            ),
            (
                lambda: nn.aggregate(GRAPH).kernel(limit.inputs(jnp.ones((2, 5, 1)), crossed=True)),
                "aggregate.kernel: spatial axis 0: got 5 positions",
            ),
            (lambda: nn.aggregate(GRAPH).kernel(limit.inputs(x)), "aggregate.kernel: the covar"),
        ]:
            assert message_of(action).startswith(start)

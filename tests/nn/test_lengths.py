"""Limits over padded sequences: against unpadded ones, and against random networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks_compared import message_of

from jaxnn import kernels, nn

dense = partial(nn.dense, weight_std=1.2, bias_std=0.5)
recurrent = partial(
    nn.rnn, 512, activation=nn.erf(), weight_std=1.3, recurrent_std=0.9, bias_std=0.3
)
attention = partial(nn.self_attention, 1, scaling="linear", weight_std=1.3, bias_std=0.3)
NETS = {
    "mean": [dense(512), nn.relu(), nn.global_avg_pool()],
    "sum": [dense(512), nn.erf(), nn.global_sum_pool()],
    "last state": [recurrent()],
    "first state": [recurrent(reverse=True)],
    "states": [recurrent(output="sequence", reverse=True), nn.global_avg_pool()],
    "two recurrences": [recurrent(output="sequence"), recurrent(parametrization="ntk")],
    "attention": [dense(512), attention(), nn.relu(), dense(512), nn.global_sum_pool()],
    "causal attention": [dense(512), attention(causal=True), nn.global_avg_pool()],
}  # fmt: skip
LENGTHS = np.array([3, 4, 3, 1])


def network(name):
    return nn.serial(*NETS[name], dense(1, parametrization="ntk"))


def padded(fill):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(4, 5, 2))
    x[np.arange(5)[None, :] >= LENGTHS[:, None]] = fill
    return jnp.asarray(x, "float32")


FAST = ("mean", "last state", "states", "attention")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NETS]
)
def test_padding_is_not_read(name):
    net = network(name)
    infinite = jax.jit(partial(kernels.infinite, net))
    found = infinite(nn.Sequences(padded(3.0), jnp.asarray(LENGTHS)))
    # Examples 0 and 2 are of one length: together they need no padding.
    alone = infinite(padded(0.0)[jnp.array([0, 2]), :3])
    for moment in ("nngp", "ntk"):
        value = np.asarray(getattr(found, moment))
        np.testing.assert_allclose(value[::2, ::2], getattr(alone, moment), rtol=2e-5)
        np.testing.assert_allclose(value, value.T, rtol=1e-5)


def test_sequences_of_other_lengths_and_tiles():
    net = network("mean")
    x = padded(0.0)
    lengths = jnp.asarray(LENGTHS)
    linear = nn.serial(dense(6), nn.global_avg_pool())

    @jax.jit
    def kernels_of(x):
        sequences = nn.Sequences(x, lengths)
        others = nn.Sequences(x[1:, :4], lengths[1:])
        return (
            kernels.infinite(net, sequences),
            kernels.infinite(net, sequences, others),
            kernels.infinite(net, sequences, max_bytes=4000),
            kernels.infinite(linear, sequences),
        )

    whole, apart, tiled, kernel = kernels_of(x)
    np.testing.assert_allclose(apart.ntk, whole.ntk[:, 1:], rtol=1e-5)
    np.testing.assert_allclose(tiled.ntk, whole.ntk, rtol=1e-5)
    # The mean of wide features x W + b over the times of each: by hand.
    means = np.stack([np.asarray(x, float)[i, :n].mean(0) for i, n in enumerate(LENGTHS)])
    np.testing.assert_allclose(kernel.nngp, 1.44 * means @ means.T / 2 + 0.25, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_wide_networks_have_the_kernel_of_infinite_width(name):
    net = network(name)
    x = nn.Sequences(padded(0.0), jnp.asarray(LENGTHS))

    def one(key):
        params, _ = net.init(key, (5, 2))
        y, pull = jax.vjp(lambda p: net.apply(p, x)[:, 0], params)
        rows = jax.vmap(lambda t: pull(t)[0])(jnp.eye(4))
        return jnp.outer(y, y), sum(
            j.reshape(4, -1) @ j.reshape(4, -1).T for j in jax.tree.leaves(rows)
        )

    keys = jax.random.split(jax.random.key(0, impl="unsafe_rbg"), 150)
    samples = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=5))(keys)
    exact = jax.jit(partial(kernels.infinite, net))(x)
    for sample, known in zip(samples, (exact.nngp, exact.ntk), strict=True):
        error = np.std(sample, axis=0, ddof=1) / np.sqrt(len(keys))
        size = np.max(np.abs(known))
        assert np.all(np.abs(np.mean(sample, axis=0) - known) <= 4 * error + 3e-3 * size)


def test_a_kernel_without_other_times_is_refused():
    kernel = nn.limit.inputs(jnp.ones((2, 3, 2)), lengths1=jnp.array([1, 2]))
    for layer in (nn.global_avg_pool(), nn.rnn(3)):
        assert "covariances between equal positions only" in message_of(
            lambda f=layer: f.kernel(kernel)
        )


def test_unequal_lengths_are_those_of_loops():
    # A linear recurrence, Σ_m U^m (W x + b) with m steps from each one's own end, and attention.
    lengths = np.array([3, 4, 1])
    x = np.asarray(padded(7.0), float)[:3]
    identity = nn.polynomial((0.0, 1.0))
    options = {"weight_std": 1.3, "bias_std": 0.3}
    linear = partial(nn.rnn, 9, activation=identity, recurrent_std=0.9, **options)
    heard = nn.serial(nn.self_attention(1, scaling="linear", **options), nn.global_sum_pool())

    @jax.jit
    def found(x):
        sequences = nn.Sequences(x, jnp.asarray(lengths))
        return [kernels.infinite(n, sequences) for n in (linear(), linear(reverse=True), heard)]

    forward, backward, attended = found(jnp.asarray(x, "float32"))
    product = np.einsum("isd,jtd->ijst", x, x) / 2
    drive = 1.69 * product + 0.09

    def share(i):
        logits = np.exp(drive[i, i, : lengths[i], : lengths[i]])
        return logits / logits.sum(axis=1, keepdims=True)

    for i, j in np.ndindex(3, 3):
        n, m = lengths[i], lengths[j]
        for kernel, ends in ((forward, (n - 1, m - 1)), (backward, (0, 0))):
            k = theta = 0.0
            for back in reversed(range(min(n, m))):
                s, t = (e + back if kernel is backward else e - back for e in ends)
                theta = 2 * product[i, j, s, t] + 1 + 9 * k + 0.81 * theta
                k = drive[i, j, s, t] + 0.81 * k
            np.testing.assert_allclose(kernel.nngp[i, j], k, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(kernel.ntk[i, j], theta, rtol=1e-4, atol=1e-5)
        exact = np.sum(1.69 * share(i) @ drive[i, j, :n, :m] @ share(j).T + 0.09)
        np.testing.assert_allclose(attended.nngp[i, j], exact, rtol=1e-4, atol=1e-5)

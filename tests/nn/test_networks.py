import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks_compared import close, drawn, message_of, normal

from jaxnn import nn, tree

LENGTHS = jnp.array([5, 2, 3])


def test_lenet_has_the_published_number_of_parameters():
    assert nn.parameter_count(nn.lenet(), (28, 28, 1)) == 61706
    for outputs, channels in ((3, 1), (10, 3)):
        exact = (25 * channels + 1) * 6 + (150 + 1) * 16 + 401 * 120 + 121 * 84 + 85 * outputs
        assert nn.parameter_count(nn.lenet(outputs), (28, 28, channels)) == exact


@pytest.mark.parametrize("blocks", [1, 2])
def test_residual_cnn_has_6n_plus_2_layers_of_weights(blocks):
    net = nn.residual_cnn((4, 6, 8), 5, blocks=blocks)
    params, out_shape = drawn(net, (9, 8, 3), "float32")
    assert out_shape == (5,)
    windows = [p.shape for p in jax.tree.leaves(params) if p.ndim == 4]
    shortcuts = [w for w in windows if w[:2] == (1, 1)]
    assert shortcuts == [(1, 1, 4, 6), (1, 1, 6, 8)]
    assert len(windows) - len(shortcuts) + 1 == 6 * blocks + 2
    plain = nn.residual_cnn((4, 6, 8), 5, blocks=blocks, normalize=False)
    assert not any("scale" in str(path) for path, _ in jax.tree.leaves_with_path(
        drawn(plain, (9, 8, 3), "float32")[0]
    ))  # fmt: skip


def test_cnn_is_the_serial_network():
    options = {"weight_std": 1.1, "bias_std": 0.3, "parametrization": "ntk"}
    net = nn.cnn(
        (3, 4), 2, window=(3, 2), activation=nn.tanh(), pool=nn.max_pool((2, 2)), **options
    )
    conv = [nn.conv(size, (3, 2), **options) for size in (3, 4)]
    after = nn.tanh(), nn.max_pool((2, 2))
    readout = nn.global_avg_pool(), nn.dense(2, **options)
    spelled_out = nn.serial(conv[0], *after, conv[1], *after, *readout)
    params, _ = drawn(net, (8, 9, 1), "float32")
    x = normal(9, 2, 8, 9, 1)
    np.testing.assert_array_equal(net.apply(params, x), spelled_out.apply(params, x))
    assert message_of(lambda: nn.cnn((), 2)).startswith("cnn(channels): got no size")
    assert message_of(lambda: nn.residual_cnn((), 2)).startswith("residual_cnn(channels): got no")


@pytest.mark.parametrize(
    "net",
    [
        nn.rnn_classifier((4, 3), 2, vocabulary=9),
        nn.lstm_classifier((4,), 2, vocabulary=9),
        nn.transformer(8, 2, vocabulary=9, heads=2, depth=1),
    ],
)
def test_classifiers_do_not_read_beyond_the_length(net):
    params, out_shape = drawn(net, (5,), "float32")
    assert out_shape == (2,)
    x = jnp.asarray(np.random.default_rng(0).integers(9, size=(3, 5)))
    f = jax.jit(lambda x: net.apply(params, nn.Sequences(x, LENGTHS)))
    beyond = np.arange(5)[None] >= np.asarray(LENGTHS)[:, None]
    y = f(x)
    np.testing.assert_array_equal(y, f(jnp.where(beyond, (x + 1) % 9, x)))
    assert np.all(y != f(jnp.where(beyond, x, (x + 1) % 9)))
    alone = net.apply(params, x[1:2, :2])  # the second sequence, cut to its length
    close(y[1:2], alone)
    close(f(x)[0], jax.jit(net.apply)(params, x)[0])  # the first is as long as the padding


@pytest.mark.parametrize("name", ["global_avg_pool", "global_sum_pool", "global_max_pool"])
def test_global_pools_of_sequences(name):
    x = normal(0, 3, 5, 4) - jnp.full((3, 5, 4), 2.0)
    pooled = getattr(nn, name)().apply((), nn.Sequences(x, LENGTHS))
    reduce = {"avg": np.mean, "sum": np.sum, "max": np.max}[name.split("_")[1]]
    exact = [reduce(np.asarray(x)[i, :n], axis=0) for i, n in enumerate(LENGTHS.tolist())]
    close(pooled, np.stack(exact))


def test_transformer_for_real_sequences():
    net = nn.transformer(8, 2, heads=2, drop_probability=0.4)
    params, out_shape = drawn(net, (5, 3), "float32")
    assert out_shape == (2,)
    x, key = normal(0, 3, 5, 3), jax.random.key(0)
    apply = jax.jit(net.apply)
    assert np.all(apply(params, x) != apply(params, x, key=key))
    assert tree.size(params) == nn.parameter_count(net, (5, 3))

import flax.linen as flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks_compared import check_derivatives, close, drawn, message_of, normal
from oracles import unchecked

from jaxnn import nn

LAYERS = {"rnn": nn.rnn, "lstm": nn.lstm, "gru": nn.gru}
N, T, D, H = 3, 6, 2, 4
LENGTHS = np.array([6, 1, 4])


def tolerance_of(dtype):
    return 1e-5 if dtype == "float32" else 1e-13


def in_flax(name, params):
    """The module, and our weights under its names."""
    W, U, b = params["W"], params["U"], params["b"]
    if name == "rnn":
        return flax.SimpleCell(H, param_dtype=W.dtype), {
            "i": {"kernel": W, "bias": b},
            "h": {"kernel": U},
        }
    if name == "lstm":
        cut = {}
        for i, gate in enumerate("ifgo"):
            at = slice(i * H, (i + 1) * H)
            cut |= {"i" + gate: {"kernel": W[:, at]}}
            cut |= {"h" + gate: {"kernel": U[:, at], "bias": b[at]}}
        return flax.LSTMCell(H, param_dtype=W.dtype), cut
    cut = {}
    for i, gate in enumerate("rzn"):
        at = slice(i * H, (i + 1) * H)
        cut |= {"i" + gate: {"kernel": W[:, at], "bias": b[at]}, "h" + gate: {"kernel": U[:, at]}}
    cut["hn"]["bias"] = params["c"]
    return flax.GRUCell(H, param_dtype=W.dtype), cut


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_flax(name, dtype, standard_promotion):
    last, sequence = (LAYERS[name](H, output=o) for o in ("last", "sequence"))
    params, out_shape = drawn(last, (T, D), dtype)
    assert (out_shape, drawn(sequence, (T, D), dtype)[1]) == ((H,), (T, H))
    x, lengths = normal(9, N, T, D, dtype=dtype), jnp.asarray(LENGTHS)

    @jax.jit
    def ours(params, x):
        ragged = nn.Sequences(x, lengths)
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            return (
                sequence.apply(params, x),
                last.apply(params, x),
                sequence.apply(params, ragged).values,
                last.apply(params, ragged),
                LAYERS[name](H, output="sequence", reverse=True).apply(params, ragged).values,
            )

    cell, weights = in_flax(name, params)

    @jax.jit
    def theirs(weights, x):
        run = flax.RNN(cell)
        back = flax.RNN(cell, reverse=True, keep_order=True)
        variables = {"params": {"cell": weights}}
        return run.apply(variables, x), back.apply(variables, x, seq_lengths=lengths)

    states, end, masked, masked_end, backward = ours(params, x)
    exact, exact_backward = theirs(weights, x)
    inside = np.arange(T)[None, :, None] < LENGTHS[:, None, None]
    tolerance = tolerance_of(dtype)
    assert states.dtype == dtype
    close(states, exact, tolerance)
    close(end, exact[:, -1], tolerance)
    close(masked, np.where(inside, exact, 0), tolerance)
    close(masked_end, np.asarray(exact)[np.arange(N), LENGTHS - 1], tolerance)
    close(backward, np.where(inside, exact_backward, 0), tolerance)


@pytest.mark.parametrize("name", LAYERS)
def test_what_lies_beyond_its_length_is_not_read(name):
    layer = LAYERS[name](H)
    params, _ = drawn(layer, (T, D), "float32")
    x = normal(0, N, T, D)
    spoiled = jnp.where(np.arange(T)[None, :, None] < LENGTHS[:, None, None], x, 1e3)
    f = jax.jit(lambda x: layer.apply(params, nn.Sequences(x, jnp.asarray(LENGTHS))))
    np.testing.assert_array_equal(f(x), f(spoiled))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(f(x))))(spoiled)
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[1, 1:] == 0)
    assert np.all(gradient[2, :4] != 0)


def test_cells_are_steps_of_their_layers():
    x = normal(0, N, 2, D)
    for name, cell in (("rnn", nn.rnn_cell), ("gru", nn.gru_cell), ("lstm", nn.lstm_cell)):
        layer = LAYERS[name](H, output="sequence")
        params, _ = drawn(layer, (2, D), "float32")
        zero = jnp.zeros((N, H))
        state = (zero, zero) if name == "lstm" else zero
        cell = jax.jit(cell)
        for t, exact in enumerate(np.moveaxis(jax.jit(layer.apply)(params, x), 1, 0)):
            state = cell(params, state, x[:, t])
            close(state[0] if name == "lstm" else state, exact)


def test_initial_weights():
    key = jax.random.key(0)
    params, _ = jax.jit(lambda k: nn.lstm(H, forget_bias=0.7).init(k, (T, 5000))[0])(key), None
    np.testing.assert_allclose(params["b"], np.repeat([0, 0.7, 0, 0], H).astype("float32"))
    for gate in np.split(np.asarray(params["U"]), 4, axis=1):
        close(gate @ gate.T, np.eye(H))
    assert abs(np.mean(np.asarray(params["W"]) ** 2) * 5000 - 1) < 4 * np.sqrt(2 / (5000 * 4 * H))
    constant = lambda value: lambda key, shape, dtype: jnp.full(shape, value, dtype)
    names = ("weight_init", "recurrent_init", "bias_init")
    options = {name: constant(i) for i, name in enumerate(names, 1)}
    params, _ = nn.gru(H, **options).init(key, (T, D))
    assert {k: (p.shape, float(p.mean())) for k, p in params.items()} == {
        "W": ((D, 3 * H), 1), "U": ((H, 3 * H), 2), "b": ((3 * H,), 3), "c": ((H,), 3),
    }  # fmt: skip


def test_derivatives_are_finite_differences(float64):
    net = nn.serial(
        nn.lstm(3, output="sequence"),
        nn.dense(3),
        nn.parallel(nn.gru(3, output="sequence"), nn.rnn(3, output="sequence", reverse=True)),
    )
    params, _ = drawn(net, (T, D), float64)
    lengths = jnp.asarray(LENGTHS)
    x = normal(19, N, T, D, dtype=float64)
    check_derivatives(lambda p, x: net.apply(p, nn.Sequences(x, lengths)).values, params, x)


def test_refusals():
    with unchecked():
        for action, start in [
            (lambda: nn.rnn(0), "rnn(features): got 0, expected an integer ≥ 1"),
            (
                lambda: nn.gru(3, output="all"),
                "gru(output): got 'all', expected 'last' or 'sequence'",
            ),
            (lambda: nn.lstm(3).init(jax.random.key(0), (4, 5, 6)), "lstm.init: in_shape: got (4,"),
            (lambda: nn.rnn_classifier((), 2), "rnn_classifier(features): got no size"),
        ]:
            assert message_of(action).startswith(start)
    kernel = nn.limit.inputs(jnp.ones((2, 3)), jnp.ones((2, 3)))
    for name, create in LAYERS.items():
        layer = create(H)
        params, _ = drawn(layer, (T, D), "float32")
        for shape in [(T, D), (N, T, D + 1)]:
            message = message_of(lambda s=shape, n=layer, p=params: n.apply(p, jnp.ones(s)))
            assert message.startswith(f"{name}.apply: x: got shape {shape}, expected (N, T, 2)")
        assert message_of(lambda n=layer: n.kernel(kernel)).startswith(f"{name}.kernel: ")

import flax.linen as flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks_compared import check_derivatives, close, drawn, message_of, normal
from oracles import unchecked

from jaxnn import nn

N, T, D, HEADS, K = 3, 5, 6, 2, 4
LENGTHS = np.array([5, 1, 3])


def in_flax(params):
    split = lambda p: {"kernel": p["W"].reshape(D, HEADS, K), "bias": p["b"].reshape(HEADS, K)}
    out = {"kernel": params["out"]["W"].reshape(HEADS, K, D), "bias": params["out"]["b"]}
    return {"params": {n: split(params[n]) for n in ("query", "key", "value")} | {"out": out}}


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_flax(causal, dtype, standard_promotion):
    layer = nn.self_attention(HEADS, features=HEADS * K, causal=causal)
    params, out_shape = drawn(layer, (T, D), dtype)
    assert out_shape == (T, D)
    x, lengths = normal(11, N, T, D, dtype=dtype), jnp.asarray(LENGTHS)
    inside = np.arange(T)[None, :] < LENGTHS[:, None]
    causes = np.tril(np.ones((1, 1, T, T), bool)) if causal else np.ones((1, 1, T, T), bool)

    @jax.jit
    def all_of(params, x):
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            ours = layer.apply(params, x), layer.apply(params, nn.Sequences(x, lengths)).values
        module = flax.MultiHeadDotProductAttention(HEADS, qkv_features=HEADS * K)
        masks = causes, causes & inside[:, None, None, :]
        return ours, tuple(module.apply(in_flax(params), x, mask=m) for m in masks)

    (y, ragged), (exact, exact_ragged) = all_of(params, x)
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    assert y.dtype == dtype
    close(y, exact, tolerance)
    close(ragged, np.where(inside[..., None], exact_ragged, 0), tolerance)


def test_the_future_is_not_read():
    layer = nn.self_attention(HEADS, causal=True)
    params, _ = drawn(layer, (T, D), "float32")
    x = normal(0, 1, T, D)
    changed = x.at[0, 3].add(1.0)
    before, after = layer.apply(params, x), layer.apply(params, changed)
    np.testing.assert_array_equal(before[0, :3], after[0, :3])
    assert np.all(before[0, 3:] != after[0, 3:])


def test_embedding_is_flax(standard_promotion):
    layer = nn.embedding(7, 4)
    params, out_shape = drawn(layer, (5,), "float32")
    assert out_shape == (5, 4)
    x = jnp.asarray(np.random.default_rng(0).integers(7, size=(3, 5)))
    theirs = flax.Embed(7, 4).apply({"params": {"embedding": params["W"]}}, x)
    np.testing.assert_array_equal(layer.apply(params, x), theirs)
    gradient = jax.grad(lambda p: jnp.sum(layer.apply(p, x)))(params)["W"]
    np.testing.assert_array_equal(gradient[:, 0], np.bincount(np.ravel(x), minlength=7))
    for wrong in (-1, 7):
        y = layer.apply(params, x.at[0, 0].set(wrong))
        assert np.all(np.isnan(y[0, 0]))
        np.testing.assert_array_equal(y[1:], theirs[1:])
    small = layer.apply(params, x.astype(jnp.uint8))
    np.testing.assert_array_equal(small, theirs)
    drawn_by_us, _ = nn.embedding(500, 40, weight_std=0.3).init(jax.random.key(0), ())
    assert abs(np.mean(np.asarray(drawn_by_us["W"]) ** 2) / 0.09 - 1) < 4 * np.sqrt(2 / 20000)


@pytest.mark.parametrize("d", [5, 8])
def test_positions(d, dtype):
    y = nn.positional_encoding(base=50.0).apply((), jnp.ones((2, 7, d), dtype))
    assert y.dtype == dtype
    sines = -(-d // 2)
    for t in range(7):
        for i in range(d):
            wave, j = (np.sin, i) if i < sines else (np.cos, i - sines)
            exact = 1 + wave(t * 50.0 ** (-2 * j / d))
            assert abs(float(y[1, t, i]) - exact) < (1e-5 if dtype == "float32" else 1e-14)


def test_derivatives_are_finite_differences(float64):
    attention = nn.self_attention(HEADS, features=4, bias_std=0.4, parametrization="ntk")
    net = nn.serial(nn.positional_encoding(), nn.residual(attention), nn.self_attention(3))
    params, _ = drawn(net, (T, D), float64)
    lengths = jnp.asarray(LENGTHS)
    x = normal(19, N, T, D, dtype=float64)
    check_derivatives(lambda p, x: net.apply(p, nn.Sequences(x, lengths)).values, params, x)


def test_a_sequence_without_length_is_no_nan():
    layer = nn.self_attention(HEADS)
    params, _ = drawn(layer, (T, D), "float32")
    y = layer.apply(params, nn.Sequences(normal(0, 2, T, D), jnp.array([0, 2])))
    assert np.all(np.isfinite(y.values))
    assert np.all(y.values[0] == 0)


def test_refusals():
    key, x = jax.random.key(0), jnp.ones((2, 3, 4))
    with unchecked():
        for action, start in [
            (lambda: nn.self_attention(0), "self_attention(heads): got 0"),
            (
                lambda: nn.self_attention(3).init(key, (5, 4)),
                "self_attention.init: in_shape: got (5",
            ),
            (lambda: nn.embedding(0, 3), "embedding(vocabulary): got 0"),
            (lambda: nn.embedding(3, 3, weight_std=-1.0), "embedding(weight_std): got -1.0"),
            (lambda: nn.embedding(3, 3).apply({}, x), "embedding.apply: x: got dtype float32"),
            (lambda: nn.positional_encoding().apply((), x[0]), "positional_encoding.apply: x: got"),
            (lambda: nn.positional_encoding(base=0.0), "positional_encoding(base): got 0.0"),
        ]:
            assert message_of(action).startswith(start)
    kernel = nn.limit.inputs(jnp.ones((2, 3)), jnp.ones((2, 3)))
    for layer, name in [
        (nn.self_attention(1), "self_attention(scaling='root')"),
        (nn.embedding(3, 3), "embedding"),
        (nn.positional_encoding(), "positional_encoding"),
    ]:
        assert message_of(lambda n=layer: n.kernel(kernel)).startswith(f"{name}.kernel: got")


@pytest.mark.parametrize("kind", [jnp.uint8, jnp.int32, jnp.uint32, jnp.int64, jnp.uint64])
def test_tokens_beyond_any_vocabulary_are_no_numbers(kind, float64):
    layer = nn.embedding(5, 2)
    params, _ = layer.init(jax.random.key(0), ())
    largest = jnp.iinfo(kind).max
    wrapped = 2**32 + 1 if largest > 2**32 else 5  # to 1, as an integer of 32 bits
    y = layer.apply(params, jnp.array([1, 4, 5, largest, wrapped], kind))
    np.testing.assert_array_equal(y[:2], params["W"][jnp.array([1, 4])])
    assert jnp.all(jnp.isnan(y[2:]))


def test_no_sequences_are_none_after_attention():
    layer = nn.self_attention(2, features=6)
    params, _ = layer.init(jax.random.key(0), (3, 4))
    assert layer.apply(params, jnp.zeros((0, 3, 4))).shape == (0, 3, 4)

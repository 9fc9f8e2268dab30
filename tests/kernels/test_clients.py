"""Kernels of models written in flax, equinox and haiku, turned into f(params, x)."""

import equinox as eqx
import flax.linen as linen
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnn import kernels, linalg, tree

pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
    # haiku 0.0.17 still asks for what JAX 0.10 deprecates
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

VECTORS, IMAGES, SEQUENCES = (4, 5), (3, 6, 6, 2), (3, 4, 6)


class LinenMLP(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(linen.relu(linen.Dense(7)(x)))


class LinenResNetBlock(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 3))(x)
        y = linen.Conv(4, (3, 3))(linen.relu(linen.GroupNorm(num_groups=2)(x)))
        return linen.Dense(2)((x + y).mean((1, 2)))


class LinenViTBlock(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(8, (3, 3), strides=(3, 3))(x)
        x = x.reshape(x.shape[0], -1, 8)
        h = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=2)(h, h)
        x = x + linen.Dense(8)(linen.gelu(linen.Dense(12)(linen.LayerNorm()(x))))
        return linen.Dense(2)(x.mean(1))


class LinenLSTM(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(linen.RNN(linen.OptimizedLSTMCell(5, param_dtype=float))(x)[:, -1])


class LinenEmbedding(linen.Module):
    @linen.compact
    def __call__(self, tokens):
        return linen.Dense(2)(jnp.tanh(linen.Embed(9, 4)(tokens)).mean(1))


def of_linen(module):
    def make(key, x):
        params = module.init(key, x)["params"]
        return lambda p, x: module.apply({"params": p}, x), params

    return make


def of_nnx(key, x):
    class MLP(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(x.shape[-1], 7, rngs=rngs)
            self.second = nnx.Linear(7, 3, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.tanh(self.first(x)))

    graph, params = nnx.split(MLP(nnx.Rngs(0)))
    return lambda p, x: nnx.merge(graph, p)(x), params


def of_equinox(key, x):
    model = eqx.nn.MLP(x.shape[-1], 3, 7, 2, activation=jnp.tanh, key=key)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return lambda p, x: jax.vmap(eqx.combine(p, static))(x), params


def of_equinox_gru(key, x):
    cell = eqx.nn.GRUCell(x.shape[-1], 5, key=key)
    params, static = eqx.partition(cell, eqx.is_inexact_array)

    def one(p, sequence):
        cell = eqx.combine(p, static)
        return jax.lax.scan(lambda h, s: (cell(s, h), None), jnp.zeros(5), sequence)[0]

    return lambda p, x: jax.vmap(one, (None, 0))(p, x), params


def of_haiku(key, x):
    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([7, 3])(x)))
    return model.apply, model.init(key, x)


def of_haiku_conv(key, x):
    def forward(x):
        y = jax.nn.relu(hk.Conv2D(4, 3, stride=2)(x))
        return hk.Linear(2)(hk.Flatten()(y))

    model = hk.without_apply_rng(hk.transform(forward))
    return model.apply, model.init(key, x)


MODELS = {
    "flax linen": (of_linen(LinenMLP()), VECTORS),
    "flax linen ResNet block": (of_linen(LinenResNetBlock()), IMAGES),
    "flax linen ViT block": (of_linen(LinenViTBlock()), IMAGES),
    "flax linen LSTM": (of_linen(LinenLSTM()), SEQUENCES),
    "flax linen embedding": (of_linen(LinenEmbedding()), None),
    "flax nnx": (of_nnx, VECTORS),
    "equinox": (of_equinox, VECTORS),
    "equinox GRU": (of_equinox_gru, SEQUENCES),
    "haiku": (of_haiku, VECTORS),
    "haiku convolution": (of_haiku_conv, IMAGES),
}


SLOW = (
    "flax linen ViT block",
    "flax linen ResNet block",
    "flax linen LSTM",
    "flax linen embedding",
    "equinox GRU",
    "haiku convolution",
)
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in MODELS]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_kernel_linear_model_and_operator(name, float64):
    make, shape = MODELS[name]
    if shape is None:
        x = jax.random.randint(jax.random.key(1), (3, 5), 0, 9)
    else:
        x = jax.random.normal(jax.random.key(1), shape)
    f, params = make(jax.random.key(0), x)
    params = jax.tree.map(lambda p: jnp.asarray(p, float), params)
    full = kernels.ntk(f, params, x, outputs="full", method="structured")
    jacobian = jax.jit(jax.jacrev(f))(params, x)
    blocks = [j.reshape(*full.shape[:1], full.shape[2], -1) for j in jax.tree.leaves(jacobian)]
    expected = sum(np.einsum("nax,mbx->nmab", j, j) for j in blocks)
    np.testing.assert_allclose(full, expected, rtol=0, atol=1e-10 * np.abs(expected).max())

    direction = tree.random_like(jax.random.key(2), params)
    moved = tree.add(params, direction)
    tangent = linalg.jacobian(f, params, x) @ direction
    linear = kernels.linearize(f, params)(moved, x)
    np.testing.assert_allclose(linear, f(params, x) + tangent, rtol=1e-10, atol=1e-10)

    y = np.asarray(f(params, x))
    gram = y @ y.T / y.shape[1]
    np.testing.assert_allclose(kernels.nngp(f, params, x), gram, rtol=1e-10, atol=1e-12)


def test_weights_of_a_flax_model_are_found_in_its_products():
    x = jnp.ones((2, 784))
    f, params = of_linen(LinenMLP())(jax.random.key(0), x)
    rows = kernels.plan(f, params, x).rows
    assert {row.parameter for row in rows if row.contraction != "direct"} == {
        f"['Dense_{layer}']['{name}']" for layer in (0, 1) for name in ("bias", "kernel")
    }

"""Weights that also decide: what comes of comparisons, indices and keys has no gradient."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from zoo import jacobian_kernel, normal, together

from jaxnn import kernels
from jaxnn.kernels.empirical import Method


def w(seed=1, *shape):
    return normal(seed, *(shape or (4, 3)))


def whole(number):
    return (10.0 * jnp.abs(number)).astype(int)


def times_powers_of_two(p, x):
    doublings = lax.while_loop(
        lambda c: c[1] < whole(p[0, 0]), lambda c: (2 * c[0], c[1] + 1), (1, 0)
    )
    return jnp.tanh(x @ p) * doublings[0].astype(x.dtype)


def noisy(p, x):
    noise = jax.random.normal(jax.random.key(whole(p[0, 0])), (3,), x.dtype)
    return jnp.tanh(x @ p) * jnp.broadcast_to(noise, (len(x), 3))


def noisy_layers(p, x):
    def layer(carry, weight):
        h, key = carry
        kept = jax.random.uniform(key, (4,), x.dtype)
        h = jnp.tanh(h @ weight) * jnp.broadcast_to(kept, h.shape)
        return (h, jax.random.split(key)[0]), None

    return lax.scan(layer, (x, jax.random.key(whole(p[0, 0, 0]))), p)[0][0]


def layers_with_a_flag(p, x):
    def layer(h, weight):
        on = lax.cond(p[0, 0, 0] > 0, lambda h: jnp.tanh(h @ weight), lambda h: 2.0 * h, h)
        return on, None

    return lax.scan(layer, x, p)[0]


def layers_with_flags(p, x):
    def layer(h, both):
        weight, flag = both
        return jnp.where(flag, jnp.tanh(h @ weight), h), None

    return lax.scan(layer, x, (p, p[:, 0, 0] > 0))[0]


def by_columns(p, x):
    column = lambda w: lax.cond(w[0] > 0, lambda x: x @ w, lambda x: x[:, 0] * w[1], x)
    return jax.vmap(column, in_axes=1, out_axes=1)(p)


def functions():
    """Name -> (f, params), for x of shape (N, 4)."""
    branches = [lambda h, p: h @ p, lambda h, p: 2 * h @ p, lambda h, p: jnp.sin(h @ p)]
    square, layers = w(2, 4, 4), w(3, 3, 4, 4)
    return {
        "cond": (
            lambda p, x: lax.cond(p[0, 0] > 0, lambda h: h @ p, lambda h: h[:, :3], jnp.tanh(x)),
            w(),
        ),
        "switch": (lambda p, x: lax.switch(whole(p[0, 0]) % 3, branches, x, p), w()),
        "while": (times_powers_of_two, w()),
        "largest row": (
            lambda p, x: jnp.tanh(x @ p) * jnp.broadcast_to(p[jnp.argmax(p[:, 0])], (len(x), 3)),
            w(),
        ),
        "sorted rows": (lambda p, x: jnp.tanh(x @ p[jnp.argsort(p[:, 0])]), w()),
        "rows from an entry": (
            lambda p, x: jnp.tanh(x @ lax.dynamic_slice_in_dim(p, whole(p[0, 0]) % 3, 4)),
            w(4, 6, 3),
        ),
        "mask": (lambda p, x: jnp.tanh(x @ (p * (p > 0).astype(p.dtype))), w()),
        "leaky mask": (lambda p, x: jnp.tanh(x @ jnp.where(p > 0, p, 0.1 * p)), w()),
        "rounded": (lambda p, x: jnp.tanh(x @ (p + lax.stop_gradient(jnp.round(p) - p))), w()),
        "scaled by the largest": (
            lambda p, x: jnp.tanh(x @ (p * lax.stop_gradient(jnp.abs(p).max()))),
            w(),
        ),
        "to integers and back": (
            lambda p, x: x @ p * jnp.broadcast_to(whole(p[0]).astype(p.dtype), (len(x), 3)),
            w(),
        ),
        "half of it stopped": (
            lambda p, x: jnp.tanh(x @ lax.stop_gradient(p[0]) @ p[1]) @ p[0],
            (square, w(5, 4, 4)),
        ),
        "rows the data choose": (
            lambda p, x: p[0][jnp.argmax(x @ p[1], axis=1)] + jnp.tanh(x @ p[1]),
            (w(6, 3, 3), w()),
        ),
        "noise": (noisy, w()),
        "noise in layers": (noisy_layers, layers),
        "a flag for layers": (layers_with_a_flag, layers),
        "flags for layers": (layers_with_flags, layers),
        "columns under vmap": (by_columns, w()),
    }


QUICK = ("cond", "largest row", "mask", "rounded", "to integers and back", "noise")
SLOW = [pytest.param(None, method, marks=pytest.mark.slow) for method in get_args(Method)]


@pytest.mark.parametrize(("names", "method"), [(QUICK, "structured"), *SLOW])
def test_no_gradient_is_asked_of_a_decision(names, method, float64):
    f, params = together(functions(), names)
    x1, x2 = normal(7, 3, 4), normal(8, 2, 4)
    expected = jax.jit(jacobian_kernel, static_argnums=0)(f, params, x1, x2)
    found = kernels.ntk(f, params, x1, x2, outputs="full", method=method)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_decisions_keep_the_factors_of_other_products():
    f, params = together(functions())
    plan = kernels.plan(f, params, jnp.ones((3, 4)), method="structured")
    factored = {row.parameter.split("'")[1] for row in plan.rows if row.contraction == "gram"}
    assert factored >= {"while", "noise", "noise in layers", "flags for layers", "rounded"}


def test_a_decision_in_a_batch_of_parameters(float64):
    f, params = functions()["cond"]
    x, several = normal(7, 3, 4), jnp.stack([params, -params])
    found = jax.vmap(lambda p: kernels.ntk(f, p, x))(several)
    for p, kernel in zip(several, found, strict=True):
        expected = np.einsum("nmaa->nm", jacobian_kernel(f, p, x, x)) / 3
        np.testing.assert_allclose(kernel, expected, rtol=1e-12)

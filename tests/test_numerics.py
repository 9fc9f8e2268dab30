"""The installed jaxlib computes right reductions: known failures against NumPy in float64.

Nothing of jaxnn is imported, so that the file can be run on a release that jaxnn refuses:
the first test is red on jaxlib 0.10.2 (jax issue 39103), the last on 0.10.2 and 0.11.0 (39257).
"""

import subprocess
import sys
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def test_squared_norms_of_vmapped_matrix_vector_products(dtype):
    n = {"float32": 32769, "float64": 16385}[dtype.name]
    rows = np.zeros((n, 3), dtype)
    rows[:, 0] = np.arange(n)
    squared_norms = jax.jit(jax.vmap(lambda r: jnp.sum((jnp.eye(3, dtype=dtype) @ r) ** 2)))
    exact = np.arange(n, dtype=np.float64) ** 2
    np.testing.assert_allclose(squared_norms(rows), exact, rtol=4 * np.finfo(dtype).eps)
    assert exact[-1] == (n - 1) ** 2


SIZES = (64, 128, 256, 10)


def cross_entropy(theta, unravel, x, y):
    *hidden, last = unravel(theta)
    h = x
    for weight, bias in hidden:
        h = jnp.tanh(h @ weight + bias[None])
    logits = h @ last[0] + last[1][None]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1))


def hessian_vector_product(layers, direction, x, y):
    """The R-operator (Pearlmutter, 1994) on backpropagation, by hand: R{z} is dz/dε at θ + εv."""
    h, rh, forward = x, np.zeros_like(x), []
    z, rz = h, rh
    for (weight, bias), (v, c) in zip(layers, direction, strict=True):
        z, rz = h @ weight + bias, rh @ weight + h @ v + c
        forward.append((h, rh))
        h, rh = np.tanh(z), (1 - np.tanh(z) ** 2) * rz
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    delta = (p - np.eye(z.shape[1])[y]) / len(x)
    r_delta = p * (rz - np.sum(p * rz, axis=1, keepdims=True)) / len(x)
    product = []
    for (weight, _), (v, _), (h, rh) in reversed(
        list(zip(layers, direction, forward, strict=True))
    ):
        product.append((rh.T @ delta + h.T @ r_delta, r_delta.sum(0)))
        below, r_below = delta @ weight.T, r_delta @ weight.T + delta @ v.T
        # h = tanh(z), so that h' = 1 - h² and R{h'} = -2hR{h}; unused at the input.
        delta, r_delta = below * (1 - h**2), r_below * (1 - h**2) - 2 * below * h * rh
    return product[::-1]


def test_quadratic_forms_of_a_hessian(dtype):
    rng = np.random.default_rng(7)
    layers = [
        (rng.normal(size=(n, m)) / np.sqrt(n), 0.1 * rng.normal(size=m)) for n, m in pairwise(SIZES)
    ]
    layers = jax.tree.map(lambda a: a.astype(dtype), layers)
    x, y = rng.normal(size=(50, SIZES[0])).astype(dtype), rng.integers(0, SIZES[-1], 50)
    theta, unravel = ravel_pytree(layers)

    def hvp(theta, z, x):
        gradient = jax.grad(lambda t: cross_entropy(t, unravel, x, y))
        return jax.jvp(gradient, (theta,), (z,))[1]

    product, form = jax.jit(hvp), jax.jit(lambda theta, z, x: z @ hvp(theta, z, x))
    eps = np.finfo(dtype).eps
    exactly = jax.tree.map(lambda a: a.astype(np.float64), layers)
    for seed in range(20):
        z = np.random.default_rng(seed).choice(np.array([-1.0, 1.0], dtype), theta.size)
        hz = np.asarray(product(theta, z, x), np.float64)
        size = np.sum(np.abs(z * hz))
        assert abs(float(form(theta, z, x)) - z @ hz) <= 20 * eps * size
        if seed < 3:
            direction = jax.tree.map(lambda a: np.asarray(a, np.float64), unravel(jnp.asarray(z)))
            oracle = hessian_vector_product(exactly, direction, x.astype(np.float64), y)
            exact = np.concatenate([np.ravel(a) for a in jax.tree.leaves(oracle)])
            np.testing.assert_allclose(hz, exact, atol=100 * eps * np.max(np.abs(exact)), rtol=0)


CRASHING = """
import jax, jax.numpy as jnp, numpy as np

rng = np.random.default_rng(3)
a, b = rng.normal(size=(2, 3, 1, 2, 2, 8, 8, 8)).astype(np.float32)
products = jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(a, b)
exact = np.sum(a.astype(np.float64) * b, axis=3)
np.testing.assert_allclose(products, exact, atol=1e-5)

x, y = jnp.full((10, 4, 6), 0.5, jnp.float32), jnp.full((10, 4, 6, 9, 9, 9, 9, 9), 3, jnp.float32)
contracted = jax.jit(lambda x, y: jnp.sum(x[..., None, None, None, None, None] * y, axis=2))(x, y)
assert float(jnp.max(jnp.abs(contracted - 9.0))) == 0.0
"""


def test_reductions_of_high_rank_do_not_crash():
    # In a process of its own: a segmentation fault would take the whole test run along.
    done = subprocess.run(
        [sys.executable, "-c", CRASHING], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr

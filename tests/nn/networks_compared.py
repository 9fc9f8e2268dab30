"""What the tests of layers share: data and parameters by NumPy, comparison, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import tree


def normal(seed, *shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(actual, exact, tolerance=1e-5):
    scale = max(1.0, np.max(np.abs(exact), initial=0.0))
    np.testing.assert_allclose(actual, exact, rtol=0, atol=tolerance * scale)


def message_of(action):
    with pytest.raises(ValueError, match=r": got .*, expected .*\. ") as error:
        action()
    return str(error.value)


def drawn(layer, in_shape, dtype, seed=1):
    """Parameters of the shapes of init, drawn by NumPy, which compiles nothing; and out_shape."""
    shapes = {}

    def init(key):
        params, shapes["out"] = layer.init(key, in_shape)
        return params

    params = jax.eval_shape(init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    draws = [normal(seed + i, *leaf.shape, dtype=dtype) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, draws), shapes["out"]


def check_derivatives(apply, params, x, *, tolerance=1e-7):
    """First derivatives in params and x along random directions, against central differences.

    In float64, of a sum of unequally weighted outputs and their squares.
    """

    def objective(params, x):
        y = jnp.ravel(apply(params, x))
        return jnp.sum(jnp.sin(jnp.arange(1.0, y.size + 1.0)) * y + 0.1 * y**2)

    point = (params, x)
    value_and_grad = jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))
    gradient = value_and_grad(*point)[1]
    rng, step = np.random.default_rng(0), 1e-5
    for _ in range(3):
        direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), point)
        plus, minus = (value_and_grad(*tree.axpy(s, direction, point))[0] for s in (step, -step))
        exact, difference = float(tree.dot(gradient, direction)), float((plus - minus) / (2 * step))
        assert abs(exact) > 1e-3
        assert abs(exact - difference) <= tolerance * max(1.0, abs(exact)), (exact, difference)

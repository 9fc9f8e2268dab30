"""A line fitted to least squares by `training.fit`, and the same by a NumPy loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import optimizers, training


def linear(params, x):
    return x @ params["w"] + jnp.broadcast_to(params["b"], x.shape[:1])


def half_squares(prediction, target):
    return 0.5 * (prediction - target) ** 2


def regression(dtype=jnp.float32, examples=23, seed=0):
    """Off-centre inputs of unequal scales, noisy targets, and parameters to start from."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.7, [0.5, 1.0, 1.5], (examples, 3))
    y = x @ [1.0, -2.0, 0.5] + 3.0 + rng.normal(0.0, 0.3, examples)
    params = {"w": jnp.array([0.3, 0.1, -0.2], dtype), "b": jnp.array(0.5, dtype)}
    return params, (jnp.array(x, dtype), jnp.array(y, dtype))


PARAMS, DATA = regression()
X, Y = DATA
KEY = jax.random.key(8)
ADAM = optimizers.adam(0.1)


def fit(params=PARAMS, data=DATA, **options):
    """Fit a line to least squares with Adam, where the options do not say otherwise."""
    usual = {"f": linear, "loss": half_squares, "optimizer": ADAM}
    return training.fit(params=params, data=data, **(usual | options))


def descent(rate):
    return optimizers.gradient_descent(rate)


def descend(params, data, learning_rate, batches):
    """Gradient descent on half squares in NumPy float64: parameters and losses of every step."""
    w, b = np.float64(params["w"]), np.float64(params["b"])
    x, y = (np.asarray(a, np.float64) for a in data)
    losses = []
    for rows in batches:
        residual = x[rows] @ w + b - y[rows]
        losses.append(0.5 * np.mean(residual**2))
        w = w - learning_rate * x[rows].T @ residual / len(residual)
        b = b - learning_rate * np.mean(residual)
    return {"w": w, "b": b}, np.array(losses)


def assert_close(actual, expected, dtype, float32=2e-5, float64=1e-12):
    tolerance = {"float32": float32, "float64": float64}[str(dtype)]
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


def assert_same(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        if jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def drawn_rows(examples, batch_size, steps, key):
    """The rows in the batch of every step, seen from outside: each leaves a mark on its weight."""
    before, rows = np.zeros(examples), []

    def note(progress):
        nonlocal before
        now = np.asarray(progress.params)
        rows.append(np.flatnonzero(np.round(before - now)))
        assert np.all(np.isin(np.round(before - now), [0.0, 1.0]))  # none twice in a batch
        before = now

    fit(
        jnp.zeros(examples),
        (np.arange(examples), None),
        f=lambda w, i: w[i],
        loss=lambda prediction, _: prediction,
        optimizer=descent(float(batch_size)),
        **{"steps": steps, "batch_size": batch_size, "key": key, "chunk": 1, "callback": note},
    )
    return rows


def worst(prediction, target):
    return jnp.max(jnp.abs(prediction - target))

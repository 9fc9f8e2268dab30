"""Initializers against the law they state: moments within their standard errors, and KS tests."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnn.nn import initializers

SHAPES = [(40, 11), (11, 40), (3, 3, 5, 7)]


def fans(shape):
    window = int(np.prod(shape[:-2]))
    return window * shape[-2], window * shape[-1]


# name: initializer, variance of an entry given the fans, whether the law is normal
TABLE = {
    "normal": (initializers.normal(0.3), lambda i, o: 0.09, True),
    "uniform": (initializers.uniform(0.6), lambda i, o: 0.12, False),
    "xavier_normal": (initializers.xavier_normal(), lambda i, o: 2 / (i + o), True),
    "xavier_uniform": (initializers.xavier_uniform(), lambda i, o: 2 / (i + o), False),
    "he_normal": (initializers.he_normal(), lambda i, o: 2 / i, True),
    "he_uniform": (initializers.he_uniform(), lambda i, o: 2 / i, False),
    "lecun_normal": (initializers.lecun_normal(), lambda i, o: 1 / i, True),
    "lecun_uniform": (initializers.lecun_uniform(), lambda i, o: 1 / i, False),
}
FOURTH_MOMENT = {True: 3.0, False: 1.8}  # over the variance squared


def draws(initializers, shape, seeds):
    """A dictionary of weights like that of the initializers, with an axis of seeds in front."""
    keys = jax.random.split(jax.random.key(0), seeds)

    def draw(key):
        return {name: draw(key, shape, "float32") for name, draw in initializers.items()}

    weights = jax.jit(jax.vmap(draw))(keys)
    return {name: np.asarray(weight, np.float64) for name, weight in weights.items()}


@lru_cache
def entries(shape, seeds=60):
    return draws({name: initializer for name, (initializer, _, _) in TABLE.items()}, shape, seeds)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TABLE)
def test_entries_follow_the_stated_law(name, shape):
    _, variance, normal = TABLE[name]
    weights = entries(shape)[name]
    assert weights.shape[1:] == shape
    z = weights.ravel() / np.sqrt(variance(*fans(shape)))

    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    fourth = FOURTH_MOMENT[normal]
    assert abs(np.mean(z**2) - 1) < 4 * np.sqrt((fourth - 1) / z.size)
    law = stats.norm() if normal else stats.uniform(-np.sqrt(3), 2 * np.sqrt(3))
    assert stats.kstest(z, law.cdf).pvalue > 1e-3
    if normal:
        # A normal law cut off at two standard deviations has a fourth moment of 2.4.
        assert abs(np.mean(z**4) - 3) < 4 * np.sqrt(96 / z.size)
        assert np.abs(z).max() > 3.5
    else:
        assert np.abs(z).max() <= np.sqrt(3) * (1 + 1e-6)


def test_entries_and_seeds_are_independent():
    weights = draws({"normal": initializers.normal(1.0)}, (6, 5), 200)["normal"]
    vectors = weights.reshape(len(weights), -1)
    for table in (vectors, vectors.T):
        correlation = np.corrcoef(table, rowvar=False) - np.eye(table.shape[1])
        assert np.abs(correlation).max() < 6 / np.sqrt(table.shape[0])
    once = initializers.normal(1.0)(jax.random.key(3), (6, 5), "float32")
    np.testing.assert_array_equal(
        once, initializers.normal(1.0)(jax.random.key(3), (6, 5), "float32")
    )


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 2, 2, 5), (2, 1, 2, 9)])
def test_orthogonal_has_orthonormal_rows_or_columns(shape, dtype):
    scale = 0.3
    draw = jax.jit(lambda key: initializers.orthogonal(scale)(key, shape, dtype))
    for seed in range(3):
        weight = draw(jax.random.key(seed))
        assert weight.shape == shape
        assert weight.dtype == dtype
        matrix = np.asarray(weight, np.float64).reshape(-1, shape[-1])
        if matrix.shape[0] < matrix.shape[1]:
            matrix = matrix.T
        gram = matrix.T @ matrix
        atol = 1e-14 if dtype == jnp.float64 else 1e-6
        np.testing.assert_allclose(gram, scale**2 * np.eye(len(gram)), atol=atol)


@pytest.mark.parametrize("shape", [(4, 4), (7, 3), (3, 7)])
def test_orthogonal_is_uniform(shape):
    seeds, longer = 200, max(shape)
    weights = draws({"orthogonal": initializers.orthogonal()}, shape, seeds)["orthogonal"]
    # A row is a uniform point of a sphere: its coordinates have mean 0 and variance 1/n, and their
    # squares variance < 2/n². A QR decomposition without its signs fixed fails the first.
    assert np.abs(weights.mean(axis=0)).max() < 4.5 / np.sqrt(longer * seeds)
    assert np.abs((weights**2).mean(axis=0) - 1 / longer).max() < 4.5 * np.sqrt(2 / seeds) / longer
    if shape == (4, 4):
        reflections = (np.linalg.det(weights) < 0).mean()
        assert abs(reflections - 0.5) < 4 * 0.5 / np.sqrt(seeds)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_the_dtype_is_the_one_asked_for(kind):
    with jax.enable_x64(kind == "float64"):
        everything = [initializer for initializer, _, _ in TABLE.values()]
        everything += [initializers.zeros(), initializers.orthogonal()]
        # NumPy scalars, which are strongly typed, must not widen the weights.
        everything += [initializers.normal(np.float64(0.5)), initializers.uniform(np.float64(0.5))]
        draw = jax.jit(lambda key: [initializer(key, (4, 3), kind) for initializer in everything])
        for weight in draw(jax.random.key(0)):
            assert weight.dtype == kind
            assert jnp.isfinite(weight).all()


def test_zeros_are_zero(dtype):
    np.testing.assert_array_equal(initializers.zeros()(jax.random.key(0), (3, 2), dtype), 0)
    for none in (initializers.normal(0.0), initializers.uniform(0.0)):
        np.testing.assert_array_equal(none(jax.random.key(0), (3, 2), dtype), 0)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_scales_have_to_be_magnitudes(value):
    with pytest.raises(ValueError, match=rf"std: got {value}, expected a number in \[0, inf\)"):
        initializers.normal(value)
    with pytest.raises(ValueError, match=rf"limit: got {value}, expected a number in \[0, inf\)"):
        initializers.uniform(value)

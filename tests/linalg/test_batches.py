"""Means over batches against means over everything, in float64 and by exact fractions."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from oracles import unchecked

from jaxnn import curvature, linalg
from jaxnn.linalg.batches import mean_over_batches


@pytest.mark.parametrize(("n", "batch_size"), [(12, 4), (13, 4), (13, 1), (4, 3), (5, 5), (5, 9)])
def test_the_mean_of_all_examples(n, batch_size, dtype):
    x = np.random.default_rng(n).normal(size=(n, 3)).astype(dtype)
    y = np.arange(n, dtype=dtype)
    seen = []

    def function(x, data):
        seen.append(len(x))
        return {"mean": jnp.mean(x * data["y"][:, None], axis=0), "square": jnp.mean(x**2)}

    mean = jax.jit(lambda x, y: mean_over_batches(function, (x, {"y": y}), batch_size))(x, y)
    x, y = x.astype(np.float64), y.astype(np.float64)
    eps = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(mean["mean"], np.mean(x * y[:, None], axis=0), rtol=eps, atol=eps)
    np.testing.assert_allclose(mean["square"], np.mean(x**2), rtol=eps)
    assert mean["square"].dtype == dtype
    # Traced for whole batches and for the rest, not for every batch.
    assert set(seen) == {min(batch_size, n)} | ({n % batch_size} if batch_size < n else set()) - {0}


def test_a_ragged_batch_counts_by_its_size():
    x = jnp.array([1.0, 1.0, 1.0, 10.0])  # the mean of the means of batches would be 5.5
    assert mean_over_batches(jnp.mean, (x,), 3) == 3.25


def test_batches_are_consecutive():
    starts = mean_over_batches(lambda x: x[0], (jnp.array([1.0, 0.0, 4.0, 0.0, 10.0]),), 2)
    assert starts == (2 * 1.0 + 2 * 4.0 + 1 * 10.0) / 5


def cancelling(n):
    """Float32 numbers of which a sum in their order keeps nothing, and their exact mean."""
    x = np.tile(np.array([1.0, 1e8, -1e8, 1.0], np.float32), n)
    return x, math.fsum(x) / len(x)


def test_the_sum_is_compensated():
    x, exact = cancelling(1000)
    in_order = jax.jit(lambda x: jax.lax.scan(lambda s, a: (s + a, None), x[0] * 0, x)[0])(x)
    assert abs(float(in_order) / len(x) - exact) > 0.4
    assert exact == 0.5
    mean = jax.jit(lambda x: mean_over_batches(jnp.mean, (x,), 1))(x)
    assert float(mean) == exact
    drawn = np.random.default_rng(0).lognormal(sigma=4, size=3001).astype(np.float32)
    mean = jax.jit(lambda x: mean_over_batches(jnp.mean, (x,), 1))(drawn)
    np.testing.assert_allclose(mean, math.fsum(drawn) / 3001, rtol=3e-7)


def test_derivatives_are_compensated_too():
    # In all of these the sum is of what the primal sum knows nothing about.
    x, exact = cancelling(500)
    objective = lambda w, x: jnp.mean(x) * w**2 / 2
    H = linalg.hessian(objective, jnp.ones(()), x, batch_size=1)
    one = jnp.ones(())
    product, form, linear = jax.jit(
        lambda H: (H @ one, H.quadratic_form(one), linalg.prepared(H)(one[None])[0])
    )(H)
    assert (float(product), float(form), float(linear)) == (exact, exact, exact)
    total = lambda w: mean_over_batches(lambda x: jnp.mean(x * w**3), (x,), 1)
    forward = jax.jit(jax.jacfwd(total))(jnp.ones(()))
    np.testing.assert_allclose(forward, 3 * exact, rtol=3e-7)


def test_gradients_are_those_of_the_whole(float64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(11, 3)))
    w = jnp.arange(1.0, 4.0)
    loss = lambda w, x: jnp.mean(jnp.sin(x @ w) ** 2)
    batched = lambda w, x: mean_over_batches(partial(loss, w), (x,), 4)
    for derivative in (jax.grad, partial(jax.grad, argnums=1), jax.hessian):
        np.testing.assert_allclose(
            jax.jit(derivative(batched))(w, x), derivative(loss)(w, x), atol=1e-14
        )


def test_twice_is_the_same_to_the_last_bit():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1001, 3)), "float32")
    mean = jax.jit(lambda x: mean_over_batches(lambda x: jnp.mean(jnp.exp(x), axis=0), (x,), 64))
    first = np.asarray(mean(x))
    for _ in range(5):
        np.testing.assert_array_equal(mean(x), first)


def loss(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["W"]) @ params["w"] - y) ** 2)


def temporary_bytes(batches, function):
    rng = np.random.default_rng(0)
    params = {"W": jnp.ones((20, 300), "float32"), "w": jnp.ones(300, "float32")}
    x = jnp.asarray(rng.normal(size=(16 * batches, 20)), "float32")
    H = linalg.hessian(loss, params, x, x[:, 0], batch_size=16, check=False)
    v = jnp.ones(H.shape[1], "float32")
    return jax.jit(function).lower(H, v).compile().memory_analysis().temp_size_in_bytes


def looped(H, v):
    product = linalg.prepared(H)
    return jax.lax.scan(lambda v, _: (product(v), None), v, None, length=3)[0]


def differentiated(H, v):
    form = lambda v: H.quadratic_form(linalg.coordinates(H.domain).unravel(v))
    return jax.grad(form)(v)


@pytest.mark.slow
@pytest.mark.parametrize("function", [looped, differentiated])
def test_memory_is_that_of_one_batch(function):
    few, many = (temporary_bytes(batches, function) for batches in (4, 64))
    # Anything kept of every batch is at least 16 examples of 300 units, or 6300 parameters.
    assert many - few < 16 * 300 * 4 / 2


def test_data_are_arguments_and_no_constants():
    x = jnp.ones((10, 3))
    objective = lambda w, x: jnp.mean((x @ w) ** 2)
    H = linalg.hessian(objective, jnp.ones(3), x, batch_size=4)
    for function in (lambda H, v: H @ v, lambda H, v: linalg.prepared(H)(v)):
        assert jax.make_jaxpr(function)(H, jnp.ones(3)).consts == []


def test_without_a_batch_size_data_are_of_any_kind():
    assert mean_over_batches(lambda a, b: a["x"] + b, ({"x": 2.0}, 3), None) == 5.0


@pytest.mark.parametrize(
    ("data", "got"),
    [
        ((jnp.ones(3), jnp.ones(4)), r"shapes \(3,\), \(4,\)"),
        (({"x": jnp.ones((3, 2)), "scale": 1.0},), r"shapes \(\), \(3, 2\)"),
        ((), "no arrays"),
        ((jnp.ones((0, 2)),), r"shapes \(0, 2\)"),
    ],
)
def test_data_that_are_not_as_many_examples(data, got):
    with pytest.raises(
        ValueError, match=rf"mean_over_batches\(data\): got {got}, expected the sam"
    ):
        mean_over_batches(lambda *_: jnp.zeros(()), data, 2)
    with pytest.raises(ValueError, match=rf"hessian\(data\): got {got}, expected the same"):
        linalg.hessian(lambda w, *_: jnp.sum(w**2), jnp.ones(2), *data, batch_size=2)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_sizes_that_are_none(batch_size):
    with unchecked():
        expected = rf"\(batch_size\): got {batch_size}, expected an integer ≥ 1, or None"
        with pytest.raises(ValueError, match="mean_over_batches" + expected):
            mean_over_batches(jnp.mean, (jnp.ones(3),), batch_size)
        with pytest.raises(ValueError, match="hessian" + expected):
            linalg.hessian(lambda w, x: jnp.sum(w), jnp.ones(2), jnp.ones(3), batch_size=batch_size)


def test_meshes_with_explicit_axes():
    mesh = jax.make_mesh((1,), ("d",))
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((6, 3), (6, 2)))
    w = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
    objective = lambda w, x, y: jnp.mean(jnp.sum((jnp.tanh(x @ w) - y) ** 2, axis=1))
    exact = linalg.hessian(objective, w, x, y) @ w
    with jax.set_mesh(mesh):
        placed = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))
        data, w = (placed(x, "d"), placed(y, "d")), placed(w)
        H = linalg.hessian(objective, w, *data, batch_size=4)
        np.testing.assert_allclose(jax.jit(lambda H, v: H @ v)(H, w), exact, rtol=1e-5)
        logits, key = lambda w, x: x @ w, jax.random.key(0)
        labels = curvature.fisher(logits, w, data[0], kind="monte_carlo", key=key, batch_size=4)
        assert jnp.all(jnp.isfinite(labels @ w))


BY_EXAMPLE = jnp.arange(1.0, 9.0)
COUPLED = {
    "a sum": lambda w, x: 4 * jnp.mean(jnp.tanh(x @ w), keepdims=True) * len(x),
    "batch norm": lambda w, x: (x - jnp.mean(x, axis=0, keepdims=True)) @ w,
    "its length": lambda w, x: jnp.tanh(x @ w) / len(x),
    "its places": lambda w, x: jnp.tanh(x @ w) * jnp.arange(1.0, 1 + len(x))[:, None],
    "rows of its own": lambda w, x: jnp.tanh(x @ w) * BY_EXAMPLE[: len(x), None],
}


@pytest.mark.parametrize("name", COUPLED)
def test_what_is_no_mean_over_examples_by_themselves(name):
    f, w = COUPLED[name], jnp.ones((3, 1))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    objective = lambda w, x: jnp.mean(f(w, x) ** 2)
    with pytest.raises(ValueError, match=r"hessian\(objective\): got .* on its halves a mean of"):
        linalg.hessian(objective, w, x, batch_size=4)
    linalg.hessian(objective, w, x, batch_size=4, check=False)
    linalg.hessian(objective, w, x)
    if name != "a sum":
        with pytest.raises(ValueError, match=r"fisher\(f\): got other outputs"):
            curvature.fisher(f, w, x, head="gaussian", batch_size=4)

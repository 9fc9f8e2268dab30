"""Slices and directions against NumPy in float64, and the freedom that filters remove."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import flat, random_tree, unchecked

from jaxnn import tree
from jaxnn.curvature.landscape import (
    filter_normalized,
    line_slice,
    plane_slice,
    principal_directions,
    random_direction,
)

NET = {"W1": (3, 5), "b1": (5,), "W2": (5, 2), "b2": (2,)}


def loss(params, x, y):
    h = jax.nn.relu(x @ params["W1"] + params["b1"][None])
    return jnp.mean((h @ params["W2"] + params["b2"][None] - y) ** 2)


def loss_in_numpy(params, x, y):
    p, x, y = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x, y))
    h = np.maximum(x @ p["W1"] + p["b1"], 0.0)
    return np.mean((h @ p["W2"] + p["b2"] - y) ** 2)


def problem(seed, dtype):
    rng = np.random.default_rng(seed + 50)
    x, y = (jnp.asarray(rng.normal(size=(7, k)), dtype) for k in (3, 2))
    return random_tree(seed, NET, dtype), x, y


def moved(params, *steps):
    """θ + Σ t d in NumPy float64."""
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    for t, d in steps:
        wide = jax.tree.map(lambda a, b, t=t: a + float(t) * np.asarray(b, np.float64), wide, d)
    return wide


@pytest.mark.parametrize("seed", [0, 1])
def test_slices_are_the_losses_at_their_points(seed, dtype):
    params, x, y = problem(seed, dtype)
    first, second = (random_tree(seed + k, NET, dtype) for k in (10, 20))
    s, t = jnp.asarray([-2.0, 0.3, 1.7], dtype), jnp.asarray([-0.5, 0.25], dtype)
    tolerance = 200 * np.finfo(dtype).eps
    line = jax.jit(functools.partial(line_slice, loss))(params, first, s, x, y)
    exact = [loss_in_numpy(moved(params, (a, first)), x, y) for a in s]
    np.testing.assert_allclose(line, exact, rtol=tolerance)
    assert line.dtype == dtype
    plane = plane_slice(loss, params, first, second, s, t, x, y)
    exact = [[loss_in_numpy(moved(params, (a, first), (b, second)), x, y) for b in t] for a in s]
    np.testing.assert_allclose(plane, exact, rtol=tolerance)


def test_distances_may_be_whole_numbers_and_none():
    bowl = lambda w: jnp.sum(w**2)
    w = jnp.asarray([1.0, 2.0])
    assert line_slice(bowl, w, w, np.arange(3)).tolist() == [5.0, 20.0, 45.0]
    assert line_slice(bowl, w, w, jnp.zeros(0)).shape == (0,)
    assert plane_slice(bowl, w, w, w, np.arange(2), jnp.zeros(0)).shape == (2, 0)


def numpy_filters(d, p, axis):
    """The definition, filter by filter."""
    d, p = np.moveaxis(np.asarray(d, float), axis, 0), np.moveaxis(np.asarray(p, float), axis, 0)
    rows = [np.linalg.norm(b) * a / np.linalg.norm(a) for a, b in zip(d, p, strict=True)]
    return np.moveaxis(np.stack(rows), 0, axis)


@pytest.mark.parametrize("axis", [-1, 0])
def test_every_filter_has_the_norm_of_its_own(axis, dtype):
    shapes = {"conv": (3, 2, 4, 5), "dense": (6, 3), "b": (3,), "scale": (), "none": (0, 2)}
    params, d = random_tree(0, shapes, dtype), random_tree(1, shapes, dtype)
    found = jax.jit(functools.partial(filter_normalized, filter_axis=axis))(d, params)
    tolerance = 20 * np.finfo(dtype).eps
    for name in ("conv", "dense"):
        exact = numpy_filters(d[name], params[name], axis)
        np.testing.assert_allclose(found[name], exact, rtol=tolerance)
    assert not np.any(found["b"])
    assert found["scale"] == 0.0
    keep = functools.partial(filter_normalized, filter_axis=axis, vectors="normalized")
    kept = jax.jit(keep)(d, params)
    b = np.asarray(d["b"], float)
    exact = b * np.linalg.norm(np.asarray(params["b"], float)) / np.linalg.norm(b)
    np.testing.assert_allclose(kept["b"], exact, rtol=tolerance)
    exact = abs(float(params["scale"])) * np.sign(float(d["scale"]))
    np.testing.assert_allclose(kept["scale"], exact, rtol=tolerance)
    np.testing.assert_allclose(kept["conv"], found["conv"], rtol=tolerance)


def test_filters_of_zeros_tiny_ones_and_half_precision():
    p = jnp.asarray([[3.0, 0.0, 1.0], [4.0, 0.0, 1.0]])
    d = jnp.asarray([[1e-30, 1.0, 0.0], [0.0, 1.0, 0.0]])  # 1e-60 is 0 in float32
    found = filter_normalized(d, p)
    np.testing.assert_allclose(found, [[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]], rtol=1e-6)
    # 70000 squares: their sum is infinite in float16.
    ones = jnp.ones((70_000, 1), jnp.float16)
    half = filter_normalized(ones, 2 * ones)
    assert half.dtype == jnp.float16
    np.testing.assert_array_equal(np.asarray(half, float), 2.0)


@pytest.mark.parametrize("seed", range(3))
def test_networks_of_one_function_have_one_slice(seed, float64):
    params, x, y = problem(seed, float64)
    a = 7.3
    scaled = params | {"W1": params["W1"] * a, "b1": params["b1"] * a, "W2": params["W2"] / a}
    t = jnp.linspace(-1.5, 1.5, 9)
    # The raw directions differ as two independent draws at different scales would.
    raw, other = random_tree(seed + 5, NET, float64), random_tree(seed + 5, NET, float64)
    other = other | {"W1": other["W1"] * 0.2}
    slices = lambda norm: (
        line_slice(loss, params, norm(raw, params), t, x, y),
        line_slice(loss, scaled, norm(other, scaled), t, x, y),
    )
    one, two = slices(filter_normalized)
    np.testing.assert_allclose(one, two, rtol=1e-12)
    assert np.ptp(one) > 0.1
    one, two = slices(lambda d, p: d)
    assert np.max(np.abs(one - two)) > 0.1 * np.max(one)


@pytest.mark.slow
def test_random_directions(dtype):
    params = random_tree(3, {"W": (40, 30), "b": (30,)}, dtype)
    d = random_direction(jax.random.key(1), params)
    norms = lambda w: np.linalg.norm(np.asarray(w, float), axis=0)
    np.testing.assert_allclose(norms(d["W"]), norms(params["W"]), rtol=1e-5)
    assert not np.any(d["b"])
    assert d["W"].dtype == dtype
    raw = random_direction(jax.random.key(1), params, normalization=None)
    np.testing.assert_allclose(
        d["W"], numpy_filters(raw["W"], params["W"], -1), rtol=20 * np.finfo(dtype).eps
    )
    z = flat(raw)  # 1230 draws of N(0, 1): mean within 4/√n, variance within 4√(2/n)
    assert abs(z.mean()) < 4 / len(z) ** 0.5
    assert abs(z.var() - 1) < 4 * (2 / len(z)) ** 0.5
    other = random_direction(jax.random.key(2), params, normalization=None)
    assert abs(z @ flat(other)) < 4 * len(z) ** 0.5
    keep = functools.partial(filter_normalized, vectors="normalized")
    assert np.any(random_direction(jax.random.key(1), params, normalization=keep)["b"])


def stacked(seed, points, shapes, dtype, scales=None):
    rng = np.random.default_rng(seed)
    leaves = jax.tree.map(
        lambda s: rng.normal(size=(points, *s)), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )
    if scales is not None:
        leaves = jax.tree.map(lambda a: a * scales.reshape(-1, *[1] * (a.ndim - 1)), leaves)
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), leaves)


@pytest.mark.parametrize("points", [3, 6, 20])  # fewer and more points than the 10 parameters
def test_principal_directions_are_those_of_numpy(points, dtype):
    trajectory = stacked(
        points, points, {"W": (2, 3), "b": (4,)}, dtype, np.geomspace(1, 9, points)
    )
    rows = np.stack([flat(jax.tree.map(lambda a, i=i: a[i], trajectory)) for i in range(points)])
    M = rows - rows[-1]
    _, sigma, Vt = np.linalg.svd(M, full_matrices=False)
    found = jax.jit(principal_directions)(trajectory)
    tolerance = 1e3 * np.finfo(dtype).eps
    np.testing.assert_allclose(found.explained, (sigma**2 / np.sum(sigma**2))[:2], rtol=tolerance)
    for k, direction in enumerate((found.first, found.second)):
        assert jax.tree.map(jnp.shape, direction) == {"W": (2, 3), "b": (4,)}
        sign = np.sign(M[0] @ Vt[k])
        np.testing.assert_allclose(flat(direction), sign * Vt[k], atol=tolerance)
        np.testing.assert_allclose(found.coordinates[:, k], M @ (sign * Vt[k]), atol=10 * tolerance)
    np.testing.assert_allclose(found.coordinates[-1], 0.0, atol=tolerance)
    assert np.all(found.coordinates[0] >= 0)


@pytest.mark.slow
def test_a_trajectory_in_a_plane_is_recovered_and_one_on_a_line_explains_all(dtype):
    end = random_tree(0, NET, dtype)
    u, v = (random_tree(k, NET, dtype) for k in (1, 2))
    angles = np.linspace(2.0, 0.0, 8)
    point = lambda a, wide: tree.axpy(a, u, tree.axpy(wide * np.sin(a), v, end))
    stack = lambda wide: jax.tree.map(
        lambda *p: jnp.stack(p), *[point(float(a), wide) for a in angles]
    )
    directions = jax.jit(principal_directions)
    found = directions(stack(1.0))
    tolerance = 1e2 * np.finfo(dtype).eps
    assert abs(float(jnp.sum(found.explained)) - 1.0) < tolerance
    for k in (0, 3):  # a slice of its plane goes through its points
        s, t = found.coordinates[k]
        rebuilt = tree.axpy(s, found.first, tree.axpy(t, found.second, end))
        np.testing.assert_allclose(flat(rebuilt), flat(point(float(angles[k]), 1.0)), atol=1e-4)
    line = directions(stack(0.0))
    np.testing.assert_allclose(line.explained, [1.0, 0.0], atol=tolerance)
    still = principal_directions({"w": jnp.ones((4, 3), dtype)})
    assert still.explained.tolist() == [0.0, 0.0]
    assert bool(tree.all_finite(still))


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_shares_do_not_depend_on_the_size_of_the_trajectory(size):
    trajectory = np.array([[3.0, 1.0], [2.0, -1.0], [0.0, 0.0]])
    sigma = np.linalg.svd(trajectory, compute_uv=False)
    found = principal_directions(jnp.asarray(size * trajectory, "float32"))
    np.testing.assert_allclose(found.explained, sigma**2 / np.sum(sigma**2), rtol=1e-5)


def test_a_second_direction_a_million_times_smaller_keeps_its_digits(float64):
    # Of the products M Mᵀ it would have none left: 1e-18 of the first.
    trajectory = jnp.asarray([[1.0, 0.0, 0.0], [2.0, 3e-9, 0.0], [0.0, 0.0, 0.0]])
    found = principal_directions(trajectory)
    np.testing.assert_allclose(np.abs(found.second), [0.0, 1.0, 0.0], atol=1e-6)


def bad_inputs():
    w, W = jnp.ones(3), jnp.ones((2, 3))
    bowl, t = lambda w: jnp.sum(w**2), jnp.ones(2)
    return [
        (lambda: line_slice(bowl, W, w, t), r"line_slice\(direction\): got shapes \[\(3,\)\]"),
        (lambda: line_slice(bowl, w, {"w": w}, t), r"direction\): got structure"),
        (lambda: line_slice(lambda w: w, w, w, t), r"objective\): got a value of shape \(3,\)"),
        (lambda: line_slice(bowl, w, w, 1.0), r"line_slice\(distances\): got shape \(\)"),
        (lambda: line_slice(bowl, jnp.arange(3), w, t), r"line_slice\(params\): got dtype int32"),
        (lambda: plane_slice(bowl, w, w, W, t, t), r"plane_slice\(second\): got shapes"),
        (lambda: plane_slice(bowl, w, w, w, t, W), r"second_distances\): got shape \(2, 3\)"),
        (lambda: filter_normalized(W, W, vectors="keep"), r"vectors\): got 'keep'"),
        (lambda: filter_normalized(w, w), r"filter_normalized\(params\): got leaves with \[1\]"),
        (lambda: filter_normalized(w, W), r"filter_normalized\(direction\): got shapes"),
        (lambda: filter_normalized(W, W, filter_axis=2), r"filter_axis\): got 2 for 2 axes"),
        (lambda: random_direction(jax.random.key(0), jnp.arange(3)), r"params\): got dtype int32"),
        (lambda: principal_directions(jnp.ones((2, 5))), r"trajectory\): got 10 numbers"),
        (lambda: principal_directions(jnp.ones((5, 1))), r"trajectory\): got 5 numbers"),
        (
            lambda: principal_directions({"a": W, "b": jnp.ones((4, 2))}),
            r"lengths \[\(2,\), \(4,\)",
        ),
        (lambda: principal_directions({}), r"lengths \[\]"),
        (lambda: principal_directions(jnp.ones(())), r"lengths \[\(\)\]"),
    ]


@pytest.mark.parametrize("case", range(len(bad_inputs())))
def test_bad_input_is_named(case):
    call, message = bad_inputs()[case]
    with unchecked(), pytest.raises(ValueError, match=message):
        call()

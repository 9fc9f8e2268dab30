"""Curves between networks: their identities, their gradients, their optimum by brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from oracles import flat, random_tree, unchecked

from jaxnn import optimizers, schedules, tree
from jaxnn.curvature.connectivity import bezier, connect

SHAPES = {"W": (2, 3), "b": [(3,), ()]}
NODES, WEIGHTS = np.polynomial.legendre.leggauss(12)
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2  # on [0, 1]; exact to degree 23


def trees(seed, dtype):
    return [random_tree(10 * seed + k, SHAPES, dtype) for k in range(3)]


def ring(w):
    return (jnp.sum(w**2) - 1.0) ** 2


def ring_curve(bend, t, start, end):
    """The loss at the points t of a curve, (t,), in NumPy float64."""
    t = t[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    return (np.sum(points**2, axis=1) - 1.0) ** 2


@pytest.mark.parametrize("seed", [0, 1])
def test_the_curve_is_its_polynomial_and_its_ends_are_exact(seed, dtype):
    start, bend, end = trees(seed, dtype)
    for t in (0.2, 0.77):
        p, q, r = (flat(leaf) for leaf in (start, bend, end))
        exact = (1 - t) ** 2 * p + 2 * t * (1 - t) * q + t**2 * r
        found = jax.jit(bezier)(start, bend, end, jnp.asarray(t, dtype))
        np.testing.assert_allclose(flat(found), exact, atol=10 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(flat(bezier(start, bend, end, 0.0)), flat(start))
    np.testing.assert_array_equal(flat(bezier(start, bend, end, 1.0)), flat(end))
    # Tangents: φ'(0) = 2(bend - start), φ'(1) = 2(end - bend).
    one = jnp.ones((), dtype)
    for t, p, q in ((0.0, start, bend), (1.0, bend, end)):
        slope = jax.jvp(lambda t: bezier(start, bend, end, t), (t * one,), (one,))[1]
        np.testing.assert_allclose(
            flat(slope), 2 * (flat(q) - flat(p)), atol=20 * np.finfo(dtype).eps
        )


def test_a_bend_halfway_is_the_straight_segment(dtype):
    start, _, end = trees(3, dtype)
    middle = tree.scale(0.5, tree.add(start, end))
    for t in (0.1, 0.5, 0.85):
        exact = (1 - t) * flat(start) + t * flat(end)
        found = bezier(start, middle, end, t)
        np.testing.assert_allclose(flat(found), exact, atol=10 * np.finfo(dtype).eps)
    quadratic = lambda p: tree.dot(p, p)
    rest = connect(
        quadratic, start, end, optimizers.gradient_descent(0.1), key=jax.random.key(0), steps=0
    )
    np.testing.assert_allclose(flat(rest.bend), flat(middle), atol=10 * np.finfo(dtype).eps)
    np.testing.assert_allclose(rest.curve, rest.straight, rtol=100 * np.finfo(dtype).eps)
    assert rest.losses.shape == (0,)


def test_barriers_stand_above_the_line_between_unequal_ends(float64):
    # L = x³ - 3x from x = -1.5 to 1.75: the peak in between is known, and the ends differ.
    objective = lambda x: x**3 - 3.0 * x
    start, end = jnp.asarray(-1.5), jnp.asarray(1.75)
    found = connect(
        objective,
        start,
        end,
        optimizers.gradient_descent(0.0),
        key=jax.random.key(0),
        steps=3,
        points=201,
        bend=jnp.asarray(-2.0),
    )
    t = np.linspace(0, 1, 201)
    f = lambda x: x**3 - 3 * x
    above = lambda x: np.max(f(x) - ((1 - t) * f(-1.5) + t * f(1.75)))
    np.testing.assert_allclose(found.t, t, rtol=1e-14, atol=1e-16)
    np.testing.assert_allclose(found.straight_barrier, above(-1.5 + 3.25 * t), rtol=1e-12)
    curved = (1 - t) ** 2 * -1.5 + 2 * t * (1 - t) * -2.0 + t**2 * 1.75
    np.testing.assert_allclose(found.curve, f(curved), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.barrier, above(curved), rtol=1e-12)
    assert float(found.bend) == -2.0
    assert found.finite
    # Without a barrier it is 0, as both ends belong to the grid.
    bowl = connect(
        lambda x: x**2,
        start,
        end,
        optimizers.gradient_descent(0.0),
        key=jax.random.key(0),
        steps=0,
    )
    assert (float(bowl.barrier), float(bowl.straight_barrier)) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["jaxnn", "optax"])
def test_the_ring_is_bent_around_as_well_as_any_bend_can(name, float64):
    start, end = np.array([1.0, 0.0]), np.array([-1.0, 0.0])
    mean = lambda bend: WEIGHTS @ ring_curve(bend, NODES, start, end)
    best = scipy.optimize.minimize(mean, [0.0, 1.0], tol=1e-14)
    rate = schedules.inverse_time_decay(0.2, tau=50.0)
    optimizer = {"jaxnn": optimizers.gradient_descent, "optax": optax.sgd}[name](rate)
    train = jax.jit(functools.partial(connect, ring, optimizer=optimizer, steps=4000))
    found = train(
        jnp.asarray(start),
        jnp.asarray(end),
        key=jax.random.key(1),
        bend=jnp.asarray([0.2, 0.3]),
    )
    assert mean(np.asarray(found.bend)) - best.fun < 1e-4
    np.testing.assert_allclose(found.bend, best.x, atol=0.02)
    t = np.linspace(0, 1, 65)
    lowest = np.max(ring_curve(best.x, t, start, end))
    assert lowest < 0.05
    assert abs(float(found.barrier) - lowest) < 0.01
    assert float(found.straight_barrier) == 1.0
    assert found.finite
    # What was seen while training is the loss at points of the curve.
    assert np.mean(found.losses[-2000:]) == pytest.approx(best.fun, rel=0.1)


def test_an_optimizer_is_what_has_init_and_update(float64, standard_promotion):
    # Two draws for every step of the bend: of a class that is no tuple.
    accumulated = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2)
    ends, bend = (jnp.asarray([1.0, 0.0]), jnp.asarray([-1.0, 0.0])), jnp.asarray([0.2, 0.3])
    run = lambda optimizer, steps: connect(
        ring, *ends, optimizer, key=jax.random.key(1), steps=steps, bend=bend
    )
    np.testing.assert_array_equal(run(accumulated, 1).bend, bend)
    first, still = run(accumulated, 2), run(optax.sgd(0.0), 2)
    np.testing.assert_allclose(first.losses, still.losses, rtol=1e-12)
    assert np.linalg.norm(np.asarray(first.bend - bend)) > 1e-3


def test_a_symmetric_start_stays_where_no_gradient_leads_away(float64):
    found = connect(
        ring,
        jnp.asarray([1.0, 0.0]),
        jnp.asarray([-1.0, 0.0]),
        optimizers.gradient_descent(0.1),
        key=jax.random.key(0),
        steps=200,
    )
    assert found.bend[1] == 0.0
    assert found.barrier > 0.9


def test_one_step_is_an_unbiased_gradient_of_the_mean_loss(float64):
    start, end, bend = np.array([1.0, 0.2]), np.array([-0.7, 0.4]), np.array([0.3, 0.8])
    mean = lambda bend: WEIGHTS @ ring_curve(bend, NODES, start, end)
    h = 1e-5
    gradient = [(mean(bend + h * e) - mean(bend - h * e)) / (2 * h) for e in np.eye(2)]

    def one_step(key):
        return connect(
            ring,
            *(jnp.asarray(p) for p in (start, end)),
            optimizers.gradient_descent(1.0),
            key=key,
            steps=1,
            bend=jnp.asarray(bend),
            points=2,
        )

    n = 20_000
    found = jax.jit(jax.vmap(one_step))(jax.random.split(jax.random.key(0), n))
    steps = bend - np.asarray(found.bend)
    error = steps.std(axis=0) / n**0.5
    assert np.all(np.abs(steps.mean(axis=0) - gradient) <= 4 * error)
    assert np.all(error < 0.02 * np.linalg.norm(gradient))
    # Each is the gradient at one point of the curve, whose loss it reports.
    error = np.std(found.losses) / n**0.5
    assert abs(np.mean(found.losses) - mean(bend)) <= 4 * error


def test_two_trained_networks_are_connected(dtype):
    """Of one function up to the order of the units: as far apart as two seeds, equally good."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(20, 2)), dtype)
    net = lambda p, x: jnp.tanh(x @ p["W"]) @ p["v"]
    start = {
        "W": jnp.asarray(rng.normal(size=(2, 6)), dtype),
        "v": jnp.asarray(rng.normal(size=6), dtype),
    }
    order = np.array([3, 4, 5, 0, 1, 2])
    end = {"W": -start["W"][:, order], "v": -start["v"][order]}
    y = net(start, x)
    loss = lambda p, x, y: jnp.mean((net(p, x) - y) ** 2)
    found = jax.jit(
        lambda key: connect(
            loss, start, end, optimizers.adam(0.01), x, y, key=key, steps=1500, bend=start
        )
    )(jax.random.key(0))
    assert found.losses.dtype == found.curve.dtype == dtype
    assert max(float(found.curve[0]), float(found.curve[-1])) < 1e-10
    assert float(found.barrier) < 0.5 * float(found.straight_barrier)


def test_a_diverged_bend_says_so():
    found = connect(
        ring,
        jnp.asarray([1.0, 0.0]),
        jnp.asarray([-1.0, 0.0]),
        optimizers.gradient_descent(1e3),
        key=jax.random.key(0),
        steps=50,
        bend=jnp.asarray([0.0, 1.0]),
    )
    assert not found.finite


def bad_inputs():
    w, key, descent = jnp.ones(2), jax.random.key(0), optimizers.gradient_descent(0.1)
    good = functools.partial(connect, ring, key=key, steps=1)
    return [
        (lambda: good(w, jnp.ones(3), descent), r"connect\(end\): got shapes \[\(3,\)\]"),
        (lambda: good(w, w, descent, bend={"w": w}), r"connect\(bend\): got structure"),
        (lambda: good(w, w, 0.1), r"connect\(optimizer\): got float without init"),
        (lambda: good(w, w, descent, steps=-1), r"connect\(steps\): got -1"),
        (lambda: good(w, w, descent, points=1), r"connect\(points\): got 1"),
        (lambda: good(jnp.arange(2), w, descent), r"connect\(start\): got dtype int32"),
        (lambda: connect(jnp.sin, w, w, descent, key=key, steps=1), r"objective\): got a value"),
        (lambda: good(w, jnp.arange(2), descent), r"connect\(end\): got dtype int32"),
        (lambda: good(w, w, descent, bend=jnp.arange(2)), r"connect\(bend\): got dtype int32"),
        (lambda: bezier(w, jnp.ones(1), w, 0.5), r"bezier\(bend\): got shapes"),
        (lambda: bezier(jnp.arange(2), w, w, 0.5), r"bezier\(start\): got dtype int32"),
        (lambda: bezier(w, jnp.arange(2), w, 0.5), r"bezier\(bend\): got dtype int32"),
        (lambda: bezier(w, w, jnp.arange(2), 0.5), r"bezier\(end\): got dtype int32"),
        (lambda: bezier(w, w, w, w), r"bezier\(t\): got shape \(2,\).*vmap over t"),
    ]


@pytest.mark.parametrize("case", range(len(bad_inputs())))
def test_bad_input_is_named(case):
    call, message = bad_inputs()[case]
    with unchecked(), pytest.raises(ValueError, match=message):
        call()

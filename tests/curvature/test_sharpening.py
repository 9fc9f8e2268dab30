"""Sharpness and its course against dense eigenvalues of Hessians along hand-made steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from oracles import flat, random_tree, unchecked

from jaxnn import optimizers, tree
from jaxnn.curvature.connectivity import connect
from jaxnn.curvature.sharpening import sharpness, sharpness_trajectory

KEY = jax.random.key(3)


def symmetric(seed, values):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    return (q * values) @ q.T


def quadratic(w, matrix, center):
    return 0.5 * jnp.vdot(w - center, jnp.matmul(matrix, w - center, precision="highest"))


SHAPES = {"W": (6, 20), "b": (20,), "v": (20,)}


def network(params, x, y):
    """½ mean squared error of a tanh network of 160 parameters: too many for the dense way."""
    multiply = lambda a, b: jnp.matmul(a, b, precision="highest")
    hidden = jnp.tanh(multiply(x, params["W"]) + params["b"][None])
    return 0.5 * jnp.mean((multiply(hidden, params["v"]) - y) ** 2)


def problem(seed, dtype):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(12, 6)) + 0.3, dtype)
    return random_tree(seed, SHAPES, dtype), x, jnp.sin(3 * x[:, 0])


def dense(params, *args):
    """Eigenvalues of the Hessian, ascending, and its columns in the coordinates of `flat`."""
    vector, unravel = ravel_pytree(params)
    matrix = jax.hessian(lambda v: network(unravel(v), *args))(vector)
    return np.linalg.eigh(np.asarray(matrix, np.float64))


def test_sharpness_is_the_largest_eigenvalue_of_the_hessian(dtype):
    measured = jax.jit(lambda p, x, y: sharpness(network, p, x, y, key=KEY))
    for seed in (0, 1):
        params, x, y = problem(seed, dtype)
        found = measured(params, x, y)
        values, vectors = dense(params, x, y)
        loose = 2e-5 if dtype == jnp.float32 else 1e-10
        assert found.converged
        np.testing.assert_allclose(found.value, values[-1], rtol=loose)
        np.testing.assert_allclose(abs(flat(found.vector) @ vectors[:, -1]), 1.0, rtol=loose)
        assert found.residual <= 1e-4 * values[-1]


@pytest.mark.slow
def test_ragged_batches_make_no_difference(float64):
    params, x, y = problem(2, float64)
    found = sharpness(network, params, x, y, key=KEY, batch_size=5)
    np.testing.assert_allclose(found.value, dense(params, x, y)[0][-1], rtol=1e-10)


def test_it_is_signed_and_no_largest_magnitude(float64):
    measured = jax.jit(lambda m: sharpness(quadratic, jnp.zeros(120), m, jnp.ones(120), key=KEY))
    for values in (-np.geomspace(0.5, 8.0, 120), np.linspace(-9.0, 2.5, 120)):
        found = measured(jnp.asarray(symmetric(2, values)))
        assert found.converged
        np.testing.assert_allclose(found.value, values.max(), rtol=1e-9)


@pytest.mark.slow
def test_a_near_start_saves_products(float64):
    params, x, y = problem(4, float64)
    measured = jax.jit(
        lambda p, start: sharpness(network, p, x, y, key=KEY, start=start, tolerance=1e-6)
    )
    cold = tree.random_like(jax.random.key(1), params)
    near = tree.axpy(1e-3, cold, params)
    before = measured(params, cold)
    warm, again = measured(near, before.vector), measured(near, cold)
    np.testing.assert_allclose(warm.value, dense(near, x, y)[0][-1], rtol=1e-9)
    assert warm.converged
    assert again.products > warm.products


def by_hand(params, optimizer, args, records):
    """Parameters and λ_max at these steps, by a loop over gradients and dense matrices."""
    state, done, found = optimizer.init(params), 0, []
    gradient = jax.jit(jax.grad(network))
    for step in records:
        for _ in range(step - done):
            updates, state = optimizer.update(gradient(params, *args), state, params)
            params = jax.tree.map(jnp.add, params, updates)
        done = step
        found.append((float(network(params, *args)), dense(params, *args)[0][-1]))
    return params, np.array(found).T


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "bits"),
    [(optimizers.momentum(0.03, mu=0.8), 32), (optimizers.adam(0.02), 64)],
    ids=["ball", "adam"],
)
def test_a_trajectory_is_that_of_a_loop(optimizer, bits):
    with jax.enable_x64(bits == 64):
        params, x, y = problem(5, f"float{bits}")
        run = jax.jit(
            lambda p: sharpness_trajectory(
                *(network, p, optimizer, x, y),
                **{"steps": 8, "every": 3, "key": KEY},
            )
        )(params)
        run = jax.tree.map(np.asarray, run)
        end, (losses, tops) = by_hand(params, optimizer, (x, y), [0, 3, 6, 8])
    np.testing.assert_array_equal(run.steps, [0, 3, 6, 8])
    loose = 1e-4 if bits == 32 else 1e-8
    assert run.converged.all()
    np.testing.assert_allclose(run.losses, losses, rtol=loose)
    np.testing.assert_allclose(run.sharpness, tops, rtol=loose)
    np.testing.assert_allclose(flat(run.params), flat(end), rtol=loose, atol=loose)
    assert (run.residuals <= 1e-4 * run.sharpness).all()


@pytest.mark.slow
def test_optax_and_going_on_from_where_a_run_ended(float64, standard_promotion):
    params, x, y = problem(6, float64)
    optimizer = optax.sgd(0.05, momentum=0.9, nesterov=True)
    run = lambda p, state, steps: sharpness_trajectory(
        network, p, optimizer, x, y, steps=steps, every=4, key=KEY, state=state
    )
    half, anew = jax.jit(lambda p, s: run(p, s, 4)), optimizer.init(params)
    first = half(params, anew)
    second, forgetful = half(first.params, first.state), half(first.params, anew)
    whole = run(params, None, 8)
    np.testing.assert_allclose(flat(second.params), flat(whole.params), rtol=1e-12)
    joined = [*first.sharpness, second.sharpness[1]]
    np.testing.assert_allclose(joined, whole.sharpness, rtol=1e-9)
    assert np.abs(flat(second.params) - flat(forgetful.params)).max() > 1e-3


@pytest.mark.slow
def test_records_after_the_first_are_cheap():
    params, x, y = problem(7, "float32")
    descent = optimizers.gradient_descent(1e-6)
    run = sharpness_trajectory(network, params, descent, x, y, steps=2, key=KEY)
    assert (run.products[1:] <= run.products[0] - 8).all()


@pytest.mark.slow
def test_a_hessian_that_is_not_finite_spoils_one_record_alone(float64):
    scales = jnp.arange(1, 201) / 200  # too many for the dense way, which starts from no vector
    # Its gradient at the kink is finite and its Hessian is not; the first step leaves it.
    objective = lambda w: 0.5 * jnp.sum(scales * (w - 1) ** 2) + jnp.abs(w[0]) ** 1.5
    start, descent = jnp.ones(200).at[0].set(0.0), optimizers.gradient_descent(0.1)
    run = sharpness_trajectory(objective, start, descent, steps=2, key=KEY)
    np.testing.assert_array_equal(run.converged, [False, True, True])
    assert np.isnan(run.sharpness[0])
    w = 0.1 * float(scales[0])
    np.testing.assert_allclose(run.sharpness[1], scales[0] + 0.75 / np.sqrt(w), rtol=1e-6)


@pytest.mark.slow
def test_a_run_that_diverges_ends_in_nan_and_is_not_converged():
    matrix = symmetric(8, np.linspace(1.0, 10.0, 120))
    args = jnp.asarray(matrix, jnp.float32), jnp.ones(120, jnp.float32)
    run = sharpness_trajectory(
        lambda w, *args: quadratic(w, *args) ** 2,
        *(jnp.zeros(120), optimizers.gradient_descent(1.0), *args),
        **{"steps": 40, "every": 20, "key": KEY},
    )
    assert np.isnan(run.sharpness[-1])
    np.testing.assert_array_equal(run.converged, [True, False, False])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, r"sharpness_trajectory\(steps\): got 0"),
        ({"every": 0}, r"sharpness_trajectory\(every\): got 0"),
        ({"optimizer": optimizers.adam}, r"sharpness_trajectory\(optimizer\): got function"),
        ({"objective": lambda w: w}, r"objective\): got a value of shape \(2,\)"),
        ({"objective": lambda w: jnp.sqrt(w[0] - 1.0)}, "gradient that is not finite"),
    ],
)
def test_bad_input(change, message):
    given = {
        "objective": lambda w: jnp.sum(w**2),
        "params": jnp.ones(2),
        "optimizer": optimizers.gradient_descent(0.1),
        "steps": 2,
        "key": KEY,
    } | change
    with unchecked(), pytest.raises(ValueError, match=message):
        sharpness_trajectory(
            given.pop("objective"), given.pop("params"), given.pop("optimizer"), **given
        )


def told_of(seen):
    """Gradient descent that goes astray where it is told wrong numbers."""

    def update(grads, state, params=None, *, value, grad, value_fn, **_):
        seen.append(value)
        grads = tree.axpy(1e6, tree.sub(grad, grads), grads)
        grads = tree.scale(1 + 1e6 * (value_fn(params) - value), grads)
        return tree.scale(-0.1, grads), state

    return optimizers.Optimizer(lambda params: (), update)


def test_optimizers_are_told_the_objective(float64):
    bowl = lambda w, s: jnp.sum(s * w**2)
    seen, scales, key = [], jnp.array([2.0, 0.5]), jax.random.key(0)
    run = sharpness_trajectory(bowl, jnp.ones(2), told_of(seen), scales, steps=2, key=key)
    np.testing.assert_allclose(run.params, (1 - 0.2 * scales) ** 2)
    found = connect(bowl, jnp.ones(2), -jnp.ones(2), told_of(seen), scales, key=key, steps=3)
    assert found.finite
    assert len(seen) >= 2

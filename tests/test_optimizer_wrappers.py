"""Clipped, noisy and masked optimizers: held to optax, and to what they promise."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from least_squares import DATA, KEY, PARAMS, assert_close, fit

from jaxnn import optimizers, tree

SGD = optimizers.gradient_descent(1.0)


def grads_of(dtype, seed=0, size=1.0):
    rng = np.random.default_rng(seed)
    return {
        "W": jnp.asarray(size * rng.normal(size=(3, 2)), dtype),
        "b": (jnp.asarray(size * rng.normal(), dtype), jnp.zeros((0,), dtype)),
    }


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("options", [{"norm": 1.3}, {"norm": 50.0}, {"value": 0.4}])
def test_clipping_is_that_of_optax(options, dtype):
    for seed in range(3):
        grads = grads_of(dtype, seed)
        clip = optax.clip_by_global_norm if "norm" in options else optax.clip
        theirs = optax.chain(clip(*options.values()), optax.adam(0.1))
        ours = optimizers.clipped(optimizers.adam(0.1), **options)
        states = [ours.init(grads), theirs.init(grads)]
        for _ in range(3):
            updates, states[0] = ours.update(grads, states[0])
            expected, states[1] = theirs.update(grads, states[1])
            assert_close(updates, expected, dtype, float64=1e-10)
            grads = tree.scale(2.0, grads)


def test_clipped_gradients_keep_direction_dtype_and_zero():
    update = jax.jit(lambda g, c: optimizers.clipped(SGD, norm=c).update(g, SGD.init(g))[0])
    for dtype, size in ((jnp.float32, 1e25), (jnp.bfloat16, 30.0), (jnp.float32, 1e-25)):
        grads = grads_of(dtype, size=size)
        clipped = update(grads, 2.0)
        assert clipped["W"].dtype == dtype
        length = float(tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), clipped)))
        assert length == pytest.approx(2.0, rel=0.01) or size < 1
        a, b = (np.float64(g["W"]).ravel() for g in (grads, clipped))
        assert -a @ b == pytest.approx(np.linalg.norm(a) * np.linalg.norm(b), rel=1e-3)
    for beyond in (jnp.full(7, 3e38), jnp.full(7, 1e37)):  # whose length, or 1e-3/length, is
        assert np.all(np.isnan(update(beyond, 1e-3)))
    assert update((), 2.0) == ()
    zeros = tree.scale(0.0, grads_of(jnp.float32))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(update(zeros, 2.0)))
    mixed = {"a": jnp.ones(4), "b": jnp.ones(12, jnp.bfloat16)}
    np.testing.assert_allclose(update(mixed, 2.0)["a"], -0.5, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{"norm": 1.0}, {"value": 1.0}])
def test_a_gradient_that_is_not_finite_is_not_made_harmless(bad, options):
    grads = jnp.array([1.0, bad])
    updates = optimizers.clipped(SGD, **options).update(grads, SGD.init(grads))[0]
    finite = bool(jnp.all(jnp.isfinite(updates)))
    assert finite == (bad == np.inf and "value" in options)  # a clipped ∞ is a number


def test_noise_has_its_size_its_schedule_and_its_step():
    grads = {"a": jnp.full(4000, 3.0), "b": jnp.full(4000, 3.0)}
    optimizer = optimizers.noisy(SGD, KEY, lambda t: 0.5 / (1.0 + t.astype(float)))
    state, seen = optimizer.init(grads), []
    update = jax.jit(optimizer.update)
    for t in range(3):
        updates, state = update(grads, state)
        noise = np.stack([-updates[name] - 3.0 for name in "ab"])
        np.testing.assert_allclose(noise.std(axis=1), 0.5 / (1 + t), rtol=0.06)
        seen.append(noise.ravel())
    seen = np.concatenate([*np.split(seen[0], 2), *np.split(seen[1], 2)]).reshape(4, -1)
    assert np.abs(np.corrcoef(seen) - np.eye(4)).max() < 4 / np.sqrt(4000)
    # A state that was saved goes on as if it had not stopped.
    again, _ = update(grads, state)
    np.testing.assert_array_equal(update(grads, state)[0]["a"], again["a"])
    plain, _ = optimizers.noisy(SGD, KEY, 0.0).update(grads, state)
    np.testing.assert_array_equal(plain["a"], -3.0)


def test_masked_parameters_keep_their_values_under_momentum_and_decay():
    mask = {"w": jnp.array([True, False, True]), "b": False}
    optimizer = optimizers.masked(optimizers.adamw(0.1, weight_decay=0.5), mask)
    run = fit(optimizer=optimizer, steps=30)
    assert run.params["b"] == PARAMS["b"]
    assert run.params["w"][1] == PARAMS["w"][1]
    # The others are as in a problem that has no other parameters.
    x, y = DATA
    alone = fit(
        {"w": PARAMS["w"][jnp.array([0, 2])]},
        (x[:, jnp.array([0, 2])], y - PARAMS["w"][1] * x[:, 1] - PARAMS["b"]),
        f=lambda p, x: x @ p["w"],
        optimizer=optimizers.adamw(0.1, weight_decay=0.5),
        steps=30,
    )
    assert_close(run.params["w"][jnp.array([0, 2])], alone.params["w"], "float32", 1e-4)


def test_wrappers_of_optax_pass_the_value_on():
    seen = optimizers.clipped(optax.polyak_sgd(0.3), norm=1.0)
    grads, state = jnp.ones(2), seen.init(jnp.ones(2))
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = seen.update(grads, state, grads, value=jnp.array(1.0))
    assert np.all(np.isfinite(updates))


WELL = jnp.array([[3.0, 1.0, 0.5], [1.0, 2.0, -1.0], [0.5, -1.0, -4.0]])
START = jnp.array([1.0, 2.0, -1.0])
MASK = jnp.array([True, True, False])


def well(p):
    return 0.5 * p @ WELL @ p


def newton_step(wrapped):
    value, grads = jax.value_and_grad(well)(START)
    told = {"value": value, "grad": grads, "value_fn": well}
    return np.asarray(wrapped.update(grads, wrapped.init(START), START, **told)[0])


def test_wrappers_of_newton_s_method_pass_the_objective_on():
    newton = optimizers.saddle_free_newton(rank=3, damping=0.1)
    step, size = newton_step(newton), float(jnp.linalg.norm(WELL @ START))
    shorter = newton_step(optimizers.clipped(newton, norm=0.25 * size))
    np.testing.assert_allclose(shorter, 0.25 * step, rtol=1e-4)
    np.testing.assert_allclose(newton_step(optimizers.noisy(newton, KEY, 0.0)), step, rtol=1e-4)
    assert np.linalg.norm(newton_step(optimizers.noisy(newton, KEY, 0.1)) - step) > 1e-3


def test_masked_newton_is_newton_in_the_mask():
    newton = optimizers.masked(optimizers.saddle_free_newton(rank=3, damping=(0.0, 0.5)), MASK)
    a, p = np.float64(WELL), np.float64(START)
    least = -np.linalg.solve(a[:2, :2], a[:2] @ p)  # of the convex restriction
    np.testing.assert_allclose(newton_step(newton), [*least, 0.0], rtol=1e-4)
    told = optimizers.masked(Told, MASK)
    grads = WELL @ START
    _, seen = told.update(grads, (), START, value=1.0, grad=grads, value_fn=well)
    np.testing.assert_array_equal(seen, [*grads[:2], 0.0])
    for missing in ({"value_fn": None}, {}):
        with pytest.raises(ValueError, match="update: value_fn: got None"):
            newton.update(grads, newton.init(START), START, **missing)
    with pytest.raises(ValueError, match="update: params: got None"):
        newton.update(grads, newton.init(START), value_fn=well)


Told = optimizers.Optimizer(
    lambda params: (), lambda grads, state, params=None, *, grad, **_: (grads, grad)
)
"""Its state is the gradient that it is told of."""


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.clipped(optimizers.saddle_free_newton(rank=2), norm=1.0),
        optimizers.masked(
            optimizers.perturbed_gradient_descent(0.1, 1e-3, 1e-4, 5, 1e-6, key=KEY),
            {"w": jnp.array([True, True, False]), "b": True},
        ),
        optimizers.clipped(optax.scale(-0.1), norm=1.0),  # which takes no keywords
    ],
)
def test_fit_passes_on_to_the_wrapped_what_it_takes(optimizer):
    run = fit(optimizer=optimizer, steps=20)
    assert run.history["loss"][-1] < 0.7 * run.history["loss"][0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimizers.clipped(SGD), r"clipped\(norm, value\): got norm=None, value=None"),
        (lambda: optimizers.clipped(SGD, norm=1.0, value=1.0), r"clipped\(norm, value\): got nor"),
        (lambda: optimizers.clipped(SGD, norm=0.0), r"clipped\(norm\): got 0.0"),
        (lambda: optimizers.clipped(SGD, value=-1.0), r"clipped\(value\): got -1.0"),
        (lambda: optimizers.noisy(SGD, KEY, -1.0), r"noisy\(std\): got -1.0"),
    ],
)
def test_unfit_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("mask", [{"w": True}, {"w": jnp.array([True]), "b": True}])
def test_a_mask_has_to_fit(mask):
    optimizer = inspect.unwrap(optimizers.masked)(SGD, mask)
    with pytest.raises(ValueError, match=r"masked\(mask\): got"):
        optimizer.update(PARAMS, optimizer.init(PARAMS))

"""Optimizers that need an objective get one, whose gradient is the one that the step follows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import optimizers, tree
from jaxnn.generative import dbm, gan, rbm
from jaxnn.optimizers import Optimizer

KEY = jax.random.key(3)
X = jnp.array([[1, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]], jnp.uint8)


def witness() -> Optimizer:
    """Gradient descent whose state is the largest error of what it is told, relative to grads."""

    def update(grads, state, params, *, value, grad, value_fn, **extra):
        slope = tree.norm(tree.sub(jax.grad(value_fn)(params), grads)) / tree.norm(grads)
        wrong = tree.norm(tree.sub(grad, grads)) + jnp.abs(value_fn(params) - value)
        return tree.scale(-0.1, grads), jnp.maximum(state, slope + wrong)

    return Optimizer(init=lambda params: jnp.zeros(()), update=update)


def machines(options, optimizer):
    run = rbm.fit if "up" in options or "chains" in options else dbm.fit
    start = rbm.init(KEY, 3, 2, weight_std=0.5)
    if run is dbm.fit:
        start = dbm.init(KEY, (3, 2, 2), weight_std=0.5)
    return run(start, X, optimizer, steps=3, key=KEY, **options)


CASES = [
    {"up": 2.0, "batch_size": 2},
    {"gibbs_steps": 1},
    pytest.param({"up": 1.0}, marks=pytest.mark.slow),
    pytest.param({"chains": 5}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("options", CASES)
def test_machines_descend_an_objective(options):
    run = machines(options, witness())
    assert run.state.optimizer < 1e-5
    plain = machines(options, optimizers.gradient_descent(0.1))
    assert not plain.diverged
    for a, b in zip(jax.tree.leaves(run.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("simultaneous", [False, True])
def test_both_players_descend_their_losses(simultaneous):
    shift, slope = lambda m, z: z + jnp.broadcast_to(m, z.shape), lambda w, x: jnp.tanh(x) @ w
    run = gan.fit(
        *(shift, slope, gan.Players(jnp.ones(1), jnp.ones(1)), X[:, :1]),
        gan.Players(witness(), witness()),
        latent=1,
        steps=3,
        key=KEY,
        r1_weight=0.5,
        simultaneous=simultaneous,
    )
    assert run.state.optimizer.generator < 1e-5
    assert run.state.optimizer.discriminator < 1e-5


@pytest.mark.slow
def test_a_second_order_method_trains_a_machine():
    optimizer = optimizers.saddle_free_newton(rank=3)
    start = rbm.init(KEY, 3, 2)
    run = rbm.fit(start, X, optimizer, steps=5, key=KEY)
    assert not run.diverged
    assert tree.norm(tree.sub(run.params, start)) > 0.1

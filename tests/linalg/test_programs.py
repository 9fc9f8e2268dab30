"""Which programs their derivative computes, and what `prepared` makes of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnn import linalg
from jaxnn.linalg.programs import linearizable

a = jnp.arange(1.0, 4.0)


@jax.custom_vjp
def by_hand(v):
    return a * v


by_hand.defvjp(lambda v: (a * v, None), lambda _, u: (a * u,))


def in_numpy(v):
    return jax.pure_callback(lambda v: 2 * np.asarray(v), v, v)


def halved(v):
    return lax.while_loop(lambda v: jnp.any(v > 1), lambda v: v / 2, v)


def fed(v):
    """What depends on v reaches the first number carried after one round, and is then stopped."""
    step = lambda carry, _: ((carry[1], carry[1] + lax.stop_gradient(carry[0])), None)
    return lax.scan(step, (0 * a, v), None, length=3)[0]


def unfed(v):
    step = lambda carry, _: ((carry[0], carry[1] + lax.stop_gradient(carry[0])), None)
    return lax.scan(step, (a, v), None, length=3)[0]


LINEAR = {
    "a product": lambda v: a * v,
    "a sum over parts": lambda v: jnp.zeros(5).at[jnp.array([1, 1, 4])].add(v),
    "a loop over constants": lambda v: halved(a) * v,
    "constants that are stopped": jax.jit(lambda v: jnp.exp(a - lax.stop_gradient(a)) * v),
    "a program in NumPy of constants": lambda v: in_numpy(a) * v,
    "a loop that stops what it is not fed": unfed,
    "a choice by constants": lambda v: lax.cond(a[0] > 0, lambda v: v, lambda v: 2 * v, v),
    "recomputation": jax.checkpoint(lambda v: a * v),
    "a derivative by hand of a function of constants": lambda v: by_hand(a) * v,
}
OTHERS = {
    "a loop": halved,
    "a loop inside": jax.jit(lambda v: halved(2 * v)),
    "NumPy": in_numpy,
    "stopped": lambda v: v + lax.stop_gradient(a * v),
    "stopped inside": jax.jit(lambda v: lax.stop_gradient(a * v)),
    "stopped after a round": fed,
    "a choice by v": lambda v: lax.cond(v[0] > 0, lambda v: v, lambda v: 2 * v, v),
    "by hand": by_hand,
}


@pytest.mark.parametrize("name", [*LINEAR, *OTHERS])
def test_which_programs_are_linearized(name):
    program = jax.make_jaxpr({**LINEAR, **OTHERS}[name])(a).jaxpr
    assert linearizable(program) == (name in LINEAR)


@pytest.mark.parametrize(
    "product", [by_hand, in_numpy, lambda v: a * v, lambda v: lax.stop_gradient(a * v)]
)
def test_prepared_products_are_those_of_the_map(product):
    operator = linalg.LinearOperator(product, product, a, a, structure="symmetric")
    v = jnp.array([3.0, -1.0, 0.5])
    np.testing.assert_allclose(linalg.prepared(operator)(v), product(v), rtol=1e-6)


def test_eigenvalues_of_a_product_that_has_no_derivative():
    scales = jnp.arange(1.0, 201.0)
    product = lambda v: lax.stop_gradient(scales * v)
    operator = linalg.LinearOperator(product, product, scales, scales, structure="symmetric")
    found = linalg.eigsh(operator, 2, key=jax.random.key(0))
    assert found.converged
    np.testing.assert_allclose(found.values, [200.0, 199.0], rtol=1e-4)

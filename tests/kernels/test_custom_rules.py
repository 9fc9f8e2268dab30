"""Functions whose derivatives are defined in one direction alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from zoo import normal

from jaxnn import kernels


@jax.custom_vjp
def cube(y):
    return y**3


cube.defvjp(lambda y: (y**3, y), lambda y, g: (3 * y**2 * g,))


def deep(p, x, cube=cube):
    """A loop, a call that is computed again, and a call, around the cube."""
    layer = jax.checkpoint(lambda h, w: jax.jit(cube)(0.1 * h @ w))
    return lax.scan(lambda h, w: (layer(h, w), None), x, p)[0] @ p[0]


WAYS = [
    {"method": "auto"},
    {"method": "structured"},
    {"method": "vector_products"},
    {"method": "jacobian"},
    {"coupled": True},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.get("method", "coupled"))
def test_a_backward_rule_is_enough(way, float64):
    p, x1, x2 = normal(1, 3, 4, 4), normal(2, 3, 4), normal(3, 2, 4)
    plain = lambda p, x: deep(p, x, lambda y: y**3)
    expected = kernels.ntk(plain, p, x1, x2, outputs="full")
    found = kernels.ntk(deep, p, x1, x2, outputs="full", **way)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_the_automatic_choice_needs_no_forward_mode():
    large = jnp.ones(20_000)
    f = lambda activation: lambda p, x: activation(x[:, 0] * jnp.tanh(p[0]) * p[1])
    x = jnp.ones((2, 1))
    assert kernels.plan(f(lambda y: y**3), large, x).method == "vector_products"
    assert kernels.plan(f(cube), large, x).method == "structured"


def test_a_loop_without_a_backward_pass_is_named():
    twice = lambda s: (s[0] + 1, 2 * s[1])
    grown = lambda h: lax.while_loop(lambda s: s[0] < 2, twice, (0, h))[1]
    after, before = (lambda p, x: grown(x @ p)), (lambda p, x: grown(x) @ p)
    p, x = jnp.ones((3, 2)), jnp.ones((2, 3))
    for options in ({"method": "structured"}, {"method": "vector_products"}, {"coupled": True}):
        with pytest.raises(ValueError, match=r"got a derivative .* through a loop of unknown"):
            kernels.ntk(after, p, x, **options)
    np.testing.assert_allclose(kernels.ntk(before, p, x), jnp.full((2, 2), 48.0))

"""Objectives and networks with a `custom_vjp` against the same ones without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import curvature, linalg, losses

KEY = jax.random.key(0)


@jax.custom_vjp
def cube(x):
    return x**3


cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))


@jax.custom_vjp
def sine(x):
    return jnp.sin(x)


@jax.custom_vjp
def cosine(x):
    return jnp.cos(x)


sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (cosine(x) * g,))
cosine.defvjp(lambda x: (jnp.cos(x), x), lambda x, g: (-jnp.sin(x) * g,))
PAIRS = [(cube, lambda x: x**3), (sine, jnp.sin)]


@pytest.mark.parametrize(("rule", "plain"), PAIRS, ids=["cube", "sine"])
def test_hessians_are_those_without_the_rule(rule, plain, float64):
    mix = jnp.asarray(np.random.default_rng(0).normal(size=(9, 9)))
    objective = lambda f: lambda w, x: jnp.mean(jnp.sum(f(jnp.outer(x, mix @ w)), axis=1))
    at, x = jnp.linspace(0.3, 1.4, 9), jnp.arange(4.0)
    ours, exact = (linalg.hessian(objective(f), at, x) for f in (rule, plain))
    batched = linalg.hessian(objective(rule), at, x, batch_size=3)
    v, rtol = jnp.cos(at), 1e-10
    product = jax.jit(lambda A, v: A @ v)
    for A in (ours, batched):
        np.testing.assert_allclose(product(A, v), product(exact, v), rtol=rtol)
    form, same = (jax.jit(lambda A, v: A.quadratic_form(v))(A, v) for A in (ours, exact))
    np.testing.assert_allclose(form, same, rtol=rtol)


def test_traces_are_those_without_the_rule(float64):
    at = jnp.linspace(0.3, 1.4, 9)
    ours, exact = (
        linalg.hessian(lambda w, f=f: jnp.sum(f(w) * jnp.roll(w, 1)), at) for f in PAIRS[1]
    )
    for method, probes in (("hutchinson", 4), ("hutch++", 6)):
        found, wanted = (linalg.trace(A, KEY, probes=probes, method=method) for A in (ours, exact))
        np.testing.assert_allclose(found.value, wanted.value, rtol=1e-9)


def test_jacobians_and_what_is_made_of_them(float64):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)))
    y = jnp.asarray(np.random.default_rng(2).normal(size=(5, 2)))
    params = {"V": jnp.outer(jnp.ones(3), jnp.array([0.3, -0.4])), "W": 0.2 * jnp.eye(2)}
    network = lambda f: lambda p, x: f(x @ p["V"]) @ p["W"]
    v = jax.tree.map(jnp.cos, params)
    made = (
        lambda f: linalg.jacobian(f, params, x),
        lambda f: curvature.gauss_newton(f, losses.half_squared_error, params, x, y),
        lambda f: curvature.gauss_newton(f, losses.half_squared_error, params, x, y, batch_size=2),
        lambda f: curvature.fisher(f, params, x, head="categorical"),
        lambda f: curvature.fisher(f, params, x, kind="monte_carlo", head="gaussian", key=KEY),
    )
    for operator in made:
        ours, exact = (operator(network(f)) for f in PAIRS[0])
        for got, want in zip(*(jax.tree.leaves(A @ v) for A in (ours, exact)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
        if ours.symmetric:
            form, same = (A.quadratic_form(v) for A in (ours, exact))
            np.testing.assert_allclose(form, same, rtol=1e-9)


@pytest.mark.parametrize("method", ["newton", pytest.param("saddle_free", marks=pytest.mark.slow)])
def test_critical_points_and_their_kinds(method, float64):
    bowl = lambda w: jnp.sum(-sine(w)) + 0.5 * (w[0] - w[1]) ** 2
    found = curvature.find_critical_point(bowl, jnp.array([1.2, 1.8]), method=method)
    np.testing.assert_allclose(found.params, np.pi / 2, atol=1e-6)
    assert curvature.classify(bowl, found.params).kind == "minimum"


def test_a_rule_that_is_no_derivative_is_refused():
    @jax.custom_vjp
    def straight(x):
        return jnp.round(x)

    straight.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
    at, scales = jnp.array([0.3, 1.7, 2.2]), jnp.array([1.0, 2.0, -1.0])
    objective = lambda w: jnp.sum(scales * straight(w) * jnp.roll(w, 1) ** 2)
    with pytest.raises(ValueError, match=r"its Hessian: got one with .*Check the custom_vjp"):
        linalg.hessian(objective, at)
    linalg.hessian(objective, at, check=False)

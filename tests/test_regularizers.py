"""Regularizers against NumPy over raveled parameters, and their subgradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import regularizers

ALPHA = 0.3


def parameters(seed, dtype):
    """A tree with a zero, a scalar, an empty leaf and an empty subtree; and it as one vector."""
    rng = np.random.default_rng(seed)
    weight = 2.0 * rng.normal(size=(4, 3)) - 0.5
    weight[1] = 0.0
    tree = {"W": weight, "deep": ({"b": rng.normal(size=3)}, np.array(-1.5)), "empty": np.ones(0)}
    vector = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree) | {"none": ()}, vector


REAL = {
    "l1": (regularizers.l1, lambda v: np.abs(v).sum(), np.sign),
    "l2": (regularizers.l2, lambda v: 0.5 * (v**2).sum(), lambda v: v),
    "elastic_net": (
        lambda params: regularizers.elastic_net(params, ALPHA),
        lambda v: ALPHA * np.abs(v).sum() + 0.5 * (1 - ALPHA) * (v**2).sum(),
        lambda v: ALPHA * np.sign(v) + (1 - ALPHA) * v,
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_values_and_gradients(name, dtype):
    regularizer, formula, derivative = REAL[name]
    value_and_gradient = jax.jit(jax.value_and_grad(regularizer))
    for seed in range(3):
        params, vector = parameters(seed, dtype)
        value, gradient = value_and_gradient(params)
        assert value.shape == ()
        assert value.dtype == dtype
        rtol = 1e-12 if dtype == jnp.float64 else 1e-6
        np.testing.assert_allclose(value, formula(vector), rtol=rtol)
        assert jax.tree.structure(gradient) == jax.tree.structure(params)
        flat = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])
        # Not only close: the zeros of W have to have the derivative 0.
        np.testing.assert_array_equal(flat[vector == 0], 0)
        np.testing.assert_allclose(flat, derivative(vector), rtol=rtol)


def test_l0_counts_what_is_not_zero(dtype):
    for seed in range(3):
        params, vector = parameters(seed, dtype)
        count = jax.jit(regularizers.l0)(params)
        assert count == np.count_nonzero(vector)
        assert count == vector.size - 3
        assert jnp.issubdtype(count.dtype, jnp.integer)
    assert regularizers.l0({"a": jnp.array([-0.0, jnp.nan, 1e-30], dtype), "b": 2.0}) == 3


def test_l0_is_not_convex():
    x, y = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    halfway = regularizers.l0(0.5 * (x + y))
    assert 2 * halfway > regularizers.l0(x) + regularizers.l0(y)
    for convex in (regularizers.l1, regularizers.l2):
        assert convex(0.5 * (x + y)) <= 0.5 * (convex(x) + convex(y))


def test_an_empty_tree_has_no_penalty():
    for params in ((), {}, {"a": jnp.ones(0)}):
        assert regularizers.l0(params) == 0
        for regularizer, _, _ in REAL.values():
            assert regularizer(params) == 0.0


def test_elastic_net_joins_l1_and_l2(dtype):
    params, _ = parameters(0, dtype)
    assert regularizers.elastic_net(params, 1) == regularizers.l1(params)
    assert regularizers.elastic_net(params, 0.0) == regularizers.l2(params)
    alphas = [0.0, 0.25, 1.0]
    traced = jax.jit(jax.vmap(lambda alpha: regularizers.elastic_net(params, alpha)))
    traced = traced(jnp.array(alphas, dtype))
    one_by_one = [regularizers.elastic_net(params, alpha) for alpha in alphas]
    np.testing.assert_allclose(traced, one_by_one, rtol=1e-6)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_its_interval_is_refused(alpha):
    message = rf"elastic_net\(alpha\): got {alpha}, expected a number in \[0, 1\]. .* share"
    with pytest.raises(ValueError, match=message):
        regularizers.elastic_net(jnp.ones(2), alpha)


@pytest.mark.parametrize("name", REAL)
def test_integer_parameters_are_refused(name):
    with pytest.raises(ValueError, match=r"params\['n'\]: got dtype int32, expected real floating"):
        REAL[name][0]({"W": jnp.ones(2), "n": jnp.arange(2)})

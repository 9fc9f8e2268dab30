from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from oracles import flat, random_tree

from jaxnn import linalg, tree
from jaxnn.linalg import LinearOperator

PARAMS = {"W": (3, 4), "b": [(4,), {"scale": (), "empty": (0, 2)}], "nothing": None}


def network(params, x):
    """Outputs in a pytree with a scalar and an empty leaf; nonlinear in every parameter."""
    h = jnp.tanh(x @ params["W"] + params["b"][0][None])
    return {"y": params["b"][1]["scale"] ** 2 * h[:, :2], "sum": jnp.sum(h), "none": h[:0]}


def narrow(params, x):
    return jnp.sum(network(params, x)["y"], axis=0)


def problem(seed, dtype, n):
    x = random_tree(seed + 100, (n, 3), dtype)
    return random_tree(seed, PARAMS, dtype), x


@partial(jax.jit, static_argnums=0)
def oracle(f, params, x):
    """The dense Jacobian by JAX's own `jax.jacobian`, through raveled coordinates."""
    theta, unravel = ravel_pytree(params)
    return jax.jacobian(lambda t: ravel_pytree(f(unravel(t), x))[0])(theta)


dense = jax.jit(LinearOperator.to_dense)


def close(actual, exact, dtype, factor=100):
    scale = max(1.0, np.max(np.abs(exact), initial=0.0))
    np.testing.assert_allclose(actual, exact, atol=factor * np.finfo(dtype).eps * scale, rtol=0)


@pytest.mark.parametrize(("f", "n"), [(network, 11), (network, 2), (narrow, 3)])
def test_the_matrix_is_that_of_jax_jacobian(f, n, dtype):
    params, x = problem(n, dtype, n)
    J, exact = linalg.jacobian(f, params, x), oracle(f, params, x)
    assert J.shape == exact.shape
    assert (J.shape[0] > J.shape[1]) == (n == 11)  # both orientations
    close(dense(J), exact, dtype)
    close(dense(J.T), exact.T, dtype)
    close(dense(J @ J.T), exact @ exact.T, dtype)


@pytest.mark.parametrize("seed", range(3))
def test_adjointness(seed, dtype):
    params, x = problem(seed, dtype, 5)
    J = linalg.jacobian(network, params, x)
    v = random_tree(seed + 1, PARAMS, dtype)
    u = random_tree(seed + 2, {"y": (5, 2), "sum": (), "none": (0, 4)}, dtype)
    image, pulled = jax.jit(lambda J: (J @ v, J.T @ u))(J)
    forward, backward = flat(u) @ flat(image), flat(pulled) @ flat(v)
    scale = np.linalg.norm(flat(u)) * np.linalg.norm(flat(image))
    assert abs(forward - backward) <= 20 * np.finfo(dtype).eps * scale


def test_it_is_the_derivative_along_a_line(float64):
    params, x = problem(0, "float64", 4)
    v = random_tree(9, PARAMS, "float64")
    moved = [
        flat(network(jax.tree.map(lambda p, d, t=t: p + t * d, params, v), x))
        for t in (1e-5, -1e-5)
    ]
    difference = (moved[0] - moved[1]) / 2e-5
    np.testing.assert_allclose(
        flat(linalg.jacobian(network, params, x) @ v), difference, rtol=1e-7, atol=1e-8
    )


def test_python_and_numpy_parameters():
    J = linalg.jacobian(lambda p: p["a"] ** 2 * p["b"], {"a": 3.0, "b": np.arange(1.0, 3.0)})
    np.testing.assert_allclose(J.to_dense(), [[6.0, 9.0, 0.0], [12.0, 0.0, 9.0]])
    np.testing.assert_allclose(J @ {"a": 1.0, "b": np.zeros(2)}, [6.0, 12.0])


def test_no_parameters_and_no_outputs():
    assert linalg.jacobian(lambda p: jnp.ones(3), {}).to_dense().shape == (3, 0)
    assert linalg.jacobian(lambda p: p[:0], jnp.ones(2)).to_dense().shape == (0, 2)


def test_one_trace_for_one_function(dtype):
    traces = []

    @jax.jit
    def gram_product(J, u):
        traces.append(1)
        return (J @ J.T) @ u

    for seed in range(3):
        params, x = problem(seed, dtype, 4)
        J, u = (
            linalg.jacobian(network, params, x),
            random_tree(9, {"y": (4, 2), "sum": (), "none": (0, 4)}, dtype),
        )
        exact = oracle(network, params, x)
        close(flat(gram_product(J, u)), exact @ exact.T @ flat(u), dtype)
    assert len(traces) == 1


def test_arrays_are_carried_not_compiled_in(dtype):
    params, x = problem(0, dtype, 4)
    J = linalg.jacobian(network, params, x)
    carried = jax.tree.leaves(J)
    assert any(leaf is x for leaf in carried)
    assert jax.make_jaxpr(lambda J, v: J @ v)(J, params).consts == []
    data = Partial(network, x=x)  # arrays of a Partial are carried, too
    assert jax.make_jaxpr(lambda J, v: J @ v)(linalg.jacobian(data, params), params).consts == []
    exact = oracle(network, params, x)
    for f in (data, partial(network, x=x), lambda p: network(p, x)):
        close(dense(linalg.jacobian(f, params)), exact, dtype)


def test_created_under_jit(dtype):
    params, x = problem(0, dtype, 4)
    v = random_tree(1, PARAMS, dtype)
    product = jax.jit(lambda p, x, v: linalg.jacobian(network, p, x) @ v)(params, x, v)
    close(flat(product), oracle(network, params, x) @ flat(v), dtype)


def test_batched_parameters(dtype):
    batch = [problem(seed, dtype, 4) for seed in range(3)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[p for p, _ in batch])
    x, v = batch[0][1], random_tree(1, PARAMS, dtype)
    operators = jax.vmap(lambda p: linalg.jacobian(network, p, x))(params)
    products = jax.jit(jax.vmap(lambda J: J @ v))(operators)
    for i, (p, _) in enumerate(batch):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], products)
        close(flat(one), oracle(network, p, x) @ flat(v), dtype)


def test_differentiable_in_the_parameters(dtype):
    params, x = problem(0, dtype, 4)
    v = random_tree(1, PARAMS, dtype)
    u = random_tree(2, {"y": (4, 2), "sum": (), "none": (0, 4)}, dtype)
    theta, unravel = ravel_pytree(params)

    def pairing(p):  # ⟨u, J v⟩, and with it ⟨Jᵀ u, v⟩
        J = linalg.jacobian(network, p, x)
        return tree.dot(u, J @ v) - 3.0 * tree.dot(J.T @ u, v)

    def weighted(t):
        return jnp.dot(ravel_pytree(u)[0], ravel_pytree(network(unravel(t), x))[0])

    gradient = jax.jit(jax.grad(pairing))(params)
    exact = -2.0 * jax.jit(jax.hessian(weighted))(theta) @ ravel_pytree(v)[0]
    close(flat(gradient), exact, dtype)


def test_in_loops(dtype):
    params, x = problem(0, dtype, 4)
    J = linalg.jacobian(network, params, x)
    v = random_tree(1, PARAMS, dtype)
    step = 0.1 * J.T @ J
    exact = np.asarray(oracle(network, params, x), np.float64)
    exact = np.linalg.matrix_power(0.1 * exact.T @ exact, 3) @ flat(v)
    scanned, _ = jax.lax.scan(lambda w, _: (step @ w, None), v, None, length=3)
    carried = jax.lax.fori_loop(0, 3, lambda _, c: (c[0], c[0] @ c[1]), (step, v))[1]
    stopped = jax.lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1], c[1] @ c[2]), (0, step, v)
    )[2]
    for w in (scanned, carried, stopped):
        close(flat(w), exact, dtype)


@pytest.mark.parametrize(
    ("params", "where"),
    [
        ({"W": jnp.ones(2), "step": 3}, "params['step']: got dtype int32"),
        ([jnp.ones(2), (jnp.ones(2, bool),)], "params[1][0]: got dtype bool"),
        ({"key": jax.random.key(0)}, "params['key']: got dtype key<fry>"),
        ({"name": "tanh"}, "params['name']: got a leaf of type str"),
    ],
)
def test_parameters_that_are_no_real_numbers(params, where):
    with pytest.raises(ValueError, match="real floating point") as error:
        linalg.jacobian(lambda p: p, params)
    assert str(error.value).startswith(where)


def test_outputs_that_are_no_real_numbers():
    for f, where in [
        (lambda p: jnp.argmax(p), "f(params): got dtype int32"),
        (lambda p: {"y": p, "class": jnp.argmax(p)}, "f(params)['class']: got dtype int32"),
        (lambda p: p * 1j, "f(params): got dtype complex64"),
        (lambda p: (p, p > 0), "f(params)[1]: got dtype bool"),
    ]:
        with (
            jax.numpy_dtype_promotion("standard"),
            pytest.raises(ValueError, match="real floating point") as error,
        ):
            linalg.jacobian(f, jnp.ones(3))
        assert str(error.value).startswith(where)

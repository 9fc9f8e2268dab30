"""Operators of stored matrices against the matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from oracles import flat, random_tree

from jaxnn import linalg

U = {"W": (3, 2), "b": [(2,), (), (0, 3)]}  # dimension 9
V = ((), [(1, 3)])  # dimension 4


def matrix(seed, rows, columns, dtype):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(rows, columns)), dtype)


def like(shapes, dtype):
    return jax.eval_shape(lambda: random_tree(0, shapes, dtype))


def close(actual, exact, dtype):
    atol = 50 * np.finfo(dtype).eps * max(1.0, np.max(np.abs(exact), initial=0.0))
    np.testing.assert_allclose(actual, exact, atol=atol, rtol=0)


@pytest.mark.parametrize(("domain", "codomain"), [(U, V), (None, V), (U, None), (None, None)])
def test_products(domain, codomain, dtype):
    m = matrix(0, 4, 9, dtype)
    A = linalg.from_dense(
        m,
        None if domain is None else like(domain, dtype),
        None if codomain is None else like(codomain, dtype),
    )
    v, u = random_tree(1, domain or (9,), dtype), random_tree(2, codomain or (4,), dtype)
    image, pulled = jax.jit(lambda A, v, u: (A @ v, A.T @ u))(A, v, u)
    exact = np.asarray(m, np.float64)
    close(flat(image), exact @ flat(v), dtype)
    close(flat(pulled), exact.T @ flat(u), dtype)
    assert jax.tree.structure(image) == jax.tree.structure(u)
    assert jax.tree.map(jnp.shape, pulled) == jax.tree.map(jnp.shape, v)
    np.testing.assert_array_equal(A.to_dense(), m)
    close((A.T @ A).to_dense(), exact.T @ exact, dtype)
    assert (A.structure, (A.T @ A).structure) == ("general", "positive_semidefinite")


def test_products_keep_all_digits():
    # By HIGHEST precision; on a CPU it is what one has anyway, and this says so.
    m, v = matrix(0, 50, 700, "float32"), matrix(1, 700, 1, "float32")[:, 0]
    exact = np.asarray(m, np.float64) @ np.asarray(v, np.float64)
    np.testing.assert_allclose(linalg.from_dense(m) @ v, exact, atol=2e-4, rtol=0)
    for product in (lambda A: A @ v, lambda A: A.T @ (A @ v)):
        jaxpr = jax.make_jaxpr(product)(linalg.from_dense(m))
        precisions = [e.params["precision"] for e in jaxpr.eqns if "dot" in e.primitive.name]
        assert precisions
        assert all(jax.lax.Precision.HIGHEST in p for p in precisions)


def test_one_matrix_is_kept_and_one_program_made():
    traces = []

    @jax.jit
    def product(A, v):
        traces.append(1)
        return A.T @ (A @ v)

    for seed in range(3):
        m = matrix(seed, 3, 3, "float32")
        A = linalg.from_dense(m, structure="general")
        assert all(leaf is m for leaf in jax.tree.leaves(A))
        product(A, jnp.ones(3))
    assert len(traces) == 1
    product(linalg.from_dense(matrix(0, 3, 3, "float32"), structure="symmetric"), jnp.ones(3))
    assert len(traces) == 2


def test_stored_is_the_same_map(dtype):
    params = random_tree(3, {"W": (2, 3), "b": (3,)}, dtype)
    x = random_tree(4, (5, 2), dtype)
    objective = lambda p, x: jnp.mean(jnp.sum(jnp.tanh(x @ p["W"] + p["b"][None]) ** 2, axis=1))
    H = linalg.hessian(objective, params, x)
    S = jax.jit(linalg.stored)(H)
    exact = np.asarray(jax.jit(lambda H: H.to_dense())(H), np.float64)
    assert S.structure == "symmetric"
    np.testing.assert_array_equal(S.to_dense(), S.to_dense().T)
    close(S.to_dense(), exact, dtype)
    theta, unravel = ravel_pytree(params)
    by_jax = jax.jit(jax.hessian(lambda t: objective(unravel(t), x)))(theta)
    close(S.to_dense(), np.asarray(by_jax, np.float64), dtype)
    v = random_tree(5, {"W": (2, 3), "b": (3,)}, dtype)
    close(flat(S @ v), exact @ flat(v), dtype)
    close(S.quadratic_form(v), flat(v) @ exact @ flat(v), dtype)


def test_stored_keeps_what_is_declared_and_nothing_else():
    m = matrix(0, 4, 9, "float32")
    A = linalg.from_dense(m)
    np.testing.assert_array_equal(linalg.stored(A).to_dense(), m)
    assert linalg.stored(A).structure == "general"
    assert linalg.stored(A @ A.T).structure == "positive_semidefinite"
    skew = linalg.from_dense(jnp.array([[0.0, 1.0], [-1.0, 0.0]]))
    np.testing.assert_array_equal(linalg.stored(skew).to_dense(), [[0.0, 1.0], [-1.0, 0.0]])


def test_storage_pays_up_to_as_many_products_as_there_are_columns():
    assert [linalg.storage(n, products=60) for n in (1, 60, 61)] == ["matrix", "matrix", "products"]


def test_spaces_of_two_precisions():
    space = {"a": jnp.zeros(2, "bfloat16"), "b": jnp.zeros(1, "float32")}
    A = linalg.from_dense(jnp.diag(jnp.arange(1.0, 4.0)), space, space, structure="symmetric")
    ones = jax.tree.map(jnp.ones_like, space)
    image = A @ ones
    assert (image["a"].dtype, image["b"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(flat(image), [1.0, 2.0, 3.0])
    assert A.quadratic_form(ones) == 6.0
    np.testing.assert_array_equal(linalg.stored(A).to_dense(), np.diag([1.0, 2.0, 3.0]))


@pytest.mark.slow
def test_systems_in_a_space_of_two_precisions(float64):
    scales = {"a": jnp.arange(1.0, 3.0, dtype="float32"), "b": jnp.arange(3.0, 5.0)}
    A = linalg.from_dense(jnp.diag(jnp.arange(1.0, 5.0)), scales, scales)
    b = jax.tree.map(jnp.ones_like, scales)
    for solve in (linalg.minres, linalg.minres_qlp, linalg.cg):
        found = solve(A, b, tolerance=1e-4)
        assert found.converged
        np.testing.assert_allclose(flat(found.x), [1.0, 1 / 2, 1 / 3, 1 / 4], rtol=1e-3)


@pytest.mark.parametrize(
    ("m", "domain", "codomain", "message"),
    [
        (jnp.ones(3), None, None, r"got shape \(3,\), expected \(rows, columns\)"),
        (jnp.ones(()), None, None, r"got shape \(\), expected \(rows, columns\)"),
        (jnp.ones((2, 2, 2)), None, None, r"got shape \(2, 2, 2\), expected \(rows, columns\)"),
        (jnp.ones((2, 3)), jnp.ones(2), None, r"got shape \(2, 3\), expected \(2, 2\)"),
        (jnp.ones((2, 3)), None, jnp.ones(3), r"got shape \(2, 3\), expected \(3, 3\)"),
        (
            jnp.ones((9, 4)),
            {"a": jnp.ones((3, 3))},
            (jnp.ones(4),),
            r"got shape \(9, 4\), expected \(4, 9\)",
        ),
        (jnp.eye(2), jnp.ones(2, "complex64"), None, r"got dtype float32 between spaces with com"),
        (np.eye(2, dtype=int), None, None, r"got dtype int32, expected floating point"),
    ],
)
def test_matrices_that_do_not_fit(m, domain, codomain, message):
    with pytest.raises(ValueError, match=r"from_dense\(matrix\): " + message):
        linalg.from_dense(m, domain, codomain)


def test_a_rectangle_is_not_symmetric():
    with pytest.raises(ValueError, match=r"structure.*: got 'symmetric' from float32\[3\] to floa"):
        linalg.from_dense(jnp.ones((2, 3)), structure="symmetric")

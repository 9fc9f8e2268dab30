"""Derivatives of solutions and eigenpairs against formulas with dense inverses in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import flat

from jaxnn import curvature, linalg

N, KEY = 7, jax.random.key(3)


def family(seed, n=N):
    """A symmetric positive definite matrix, another one, a vector, and a weight for each entry."""
    rng = np.random.default_rng(seed)
    a, d = rng.normal(size=(2, n, n))
    return a @ a.T + np.eye(n), d + d.T, rng.normal(size=n), rng.normal(size=n)


def split(v):
    return {"a": v[:3], "b": v[3:].reshape(2, 2)}


def joined(v):
    return jnp.concatenate([v["a"], v["b"].ravel()])


@pytest.mark.parametrize("name", ["cg", "minres"])
def test_derivatives_of_solutions_in_both_modes(name, float64):
    solver, sigma = getattr(linalg, name), 0.0 if name == "cg" else 3.0
    options = {} if name == "cg" else {"shift": sigma}

    def value(a, b, weights):  # of trees, from a start, by a product that closes over its matrix
        right, start = split(b), jax.tree.map(jnp.ones_like, split(b))
        product = lambda v: split(a @ joined(v))
        found = solver(product, {**right}, start=start, tolerance=1e-13, **options)
        return weights @ joined(found.x)

    problems = [family(seed) for seed in (0, 1)]
    a, d, b, w = (jnp.asarray(np.stack(x)) for x in zip(*problems, strict=True))
    reverse = jax.jit(jax.vmap(jax.grad(value, argnums=(0, 1))))(a, b, w)
    forward = jax.jit(
        jax.vmap(lambda a, d, b, w: jax.jvp(value, (a, b, w), (d, 2 * b, jnp.zeros_like(w)))[1])
    )(a, d, b, w)
    for i, (matrix, change, right, weights) in enumerate(problems):
        inverse = np.linalg.inv(matrix - sigma * np.eye(N))
        x, y = inverse @ right, inverse @ weights
        np.testing.assert_allclose(reverse[0][i], -np.outer(y, x), rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(reverse[1][i], y, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(forward[i], y @ (2 * right - change @ x), rtol=1e-9)


@pytest.mark.slow
def test_second_derivatives_and_derivatives_in_one_leaf_alone(float64):
    a, d, b, w = family(2)

    def value(t):
        right = {"a": t * jnp.asarray(b[:3]), "b": jnp.asarray(b[3:]).reshape(2, 2)}
        product = lambda v: split((a + t * d) @ joined(v))
        return w @ joined(linalg.minres(product, right, tolerance=1e-13).x)

    t, e = 0.2, np.where(np.arange(N) < 3, b, 0)
    inverse = np.linalg.inv(a + t * d)
    x = inverse @ (b - (1 - t) * e)
    first = inverse @ (e - d @ x)
    second = inverse @ (-2 * d @ first)
    found = jax.jit(lambda t: (jax.grad(value)(t), jax.hessian(value)(t)))(t)
    np.testing.assert_allclose(found, [w @ first, w @ second], rtol=1e-8)


def test_a_derivative_that_does_not_exist_is_not_a_number():
    scales = jnp.array([2.0, -3.0, 0.0])
    product = lambda v: scales * v
    inside, outside = jnp.array([1.0, 1.0, 0.0]), jnp.array([0.0, 0.0, 1.0])
    change = jax.jit(lambda b: jax.jvp(lambda r: linalg.minres(product, r).x, (inside,), (b,))[1])
    np.testing.assert_allclose(change(inside), [1 / 2, -1 / 3, 0.0], rtol=1e-5)
    assert np.all(np.isnan(change(outside)))


@pytest.mark.slow
def test_the_pseudo_inverse_has_derivatives_where_its_rank_is_constant(float64):
    rng = np.random.default_rng(5)
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    skew = rng.normal(size=(6, 6))
    skew, b, w = skew - skew.T, rng.normal(size=6), rng.normal(size=6)
    values = np.array([2.0, -1.0, 0.5, 3.0, 0.0, 0.0])
    eye = np.eye(6)

    def matrix(t, xp, solve):  # of one rank: an orthogonal matrix turns its eigenvectors
        turned = solve(eye - t * skew, (eye + t * skew) @ q)
        return turned @ xp.diag(values * (1 + t)) @ turned.T

    def x(t):
        a = matrix(t, jnp, jnp.linalg.solve)
        found = linalg.minres_qlp(lambda v: a @ v, (1 + t**2) * jnp.asarray(b), tolerance=1e-12)
        return found.x

    exact = lambda t: np.linalg.pinv(matrix(t, np, np.linalg.solve), 1e-9) @ ((1 + t**2) * b)
    t, h = 0.3, 1e-5
    slope = (exact(t + h) - exact(t - h)) / (2 * h)
    forward = jax.jit(lambda t: jax.jvp(x, (t,), (1.0,)))(t)
    np.testing.assert_allclose(forward, [exact(t), slope], rtol=1e-7, atol=1e-8)
    reverse = jax.jit(jax.grad(lambda t: jnp.asarray(w) @ x(t)))(t)
    np.testing.assert_allclose(reverse, w @ slope, rtol=1e-7)
    with pytest.raises(ValueError, match=r"minres_qlp: its derivative: got .* in reverse mode"):
        jax.make_jaxpr(jax.hessian(lambda t: jnp.asarray(w) @ x(t)))(t)


def operator_of(a):
    product = lambda v: a @ v  # which closes over the matrix
    return linalg.LinearOperator(product, product, a[0], a[0], structure="symmetric")


@pytest.mark.parametrize(
    ("n", "which"),
    [(20, "both"), (120, "largest"), pytest.param(120, "magnitude", marks=pytest.mark.slow)],
)
def test_derivatives_of_eigenpairs_are_divided_differences(n, which, float64):
    _, d, y, _ = family(7, n)
    a = np.diag(np.linspace(-1.0, 1.0, n) ** 3 * 30) + 0.1 * d
    c = np.array([1.0, -2.0, 0.5])

    def value(a):
        found = linalg.eigsh(operator_of(a), 3, which=which, key=KEY)
        return c @ found.values + c @ (found.vectors @ y) ** 2, found.converged

    gradient, converged = jax.jit(jax.grad(value, has_aux=True))(jnp.asarray(a))
    values, vectors = np.linalg.eigh(a)
    order = {"largest": -values, "magnitude": -np.abs(values)}.get(which)
    wanted = np.array([n - 1, n - 2, 0]) if order is None else np.argsort(order)[:3]
    share = vectors.T @ y
    exact = np.zeros((n, n))
    for weight, i in zip(c, wanted, strict=True):
        gaps = np.where(np.arange(n) == i, np.inf, values[i] - values)
        slope = vectors @ (2 * weight * share[i] * share / gaps)
        exact += weight * np.outer(vectors[:, i], vectors[:, i]) + np.outer(slope, vectors[:, i])
    symmetric = 0.5 * (gradient + gradient.T)  # of symmetric changes of A
    assert converged
    np.testing.assert_allclose(symmetric, 0.5 * (exact + exact.T), rtol=1e-6, atol=1e-7)


def test_sums_over_equal_eigenvalues_have_derivatives_and_their_vectors_have_none(float64):
    n = 30
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0]
    a = (q * np.where(np.arange(n) < 2, 5.0, np.arange(n) / n)) @ q.T
    change = jnp.asarray(family(1, n)[1])

    def both(a, k):
        found = linalg.eigsh(operator_of(a), k, key=KEY)
        return jnp.sum(found.values), found.vectors.T @ found.vectors

    changed = lambda k: jax.jit(lambda a: jax.jvp(partial(both, k=k), (a,), (change,))[1])
    trace, projector = changed(2)(jnp.asarray(a))
    space = q[:, :2] @ q[:, :2].T
    np.testing.assert_allclose(trace, np.sum(space * change), rtol=1e-9)
    h = 1e-6
    spaces = [np.linalg.eigh(a + s * h * np.asarray(change))[1][:, -2:] for s in (1, -1)]
    slope = (spaces[0] @ spaces[0].T - spaces[1] @ spaces[1].T) / (2 * h)
    np.testing.assert_allclose(projector, slope, atol=1e-7)
    gradient = jax.jit(jax.grad(lambda a: both(a, 1)[0]))(jnp.asarray(a))  # one of the two
    np.testing.assert_allclose(np.trace(gradient), 1.0, rtol=1e-9)
    assert np.all(np.isnan(changed(1)(jnp.asarray(a))[1]))


def test_sharpness_has_the_gradient_of_a_third_derivative(float64):
    shift = jnp.asarray(np.random.default_rng(1).normal(size=3))
    quartic = lambda w, s: jnp.sum(jnp.array([1.0, 0.5, 0.2]) * (w - s) ** 4)
    top = lambda w, s: curvature.sharpness(quartic, w, s, key=KEY).value
    at = jnp.array([2.0, 1.0, -1.0])
    found = jax.jit(jax.grad(top, argnums=(0, 1)))(at, shift)
    curve = np.array([12.0, 6.0, 2.4]) * (at - shift) ** 2
    slope = np.zeros(3)
    i = np.argmax(curve)
    slope[i] = 2 * curve[i] / (at[i] - shift[i])
    np.testing.assert_allclose(found[0], slope, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(found[1], -slope, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["cg", "minres", "minres_qlp"])
def test_right_sides_of_integers_and_of_half_precision(name):
    solver = getattr(linalg, name)
    scales = jnp.array([2.0, 4.0, 8.0])
    found = solver(lambda v: scales * v, jnp.array([1, 2, 3], jnp.int32))
    np.testing.assert_allclose(found.x, [0.5, 0.5, 0.375], rtol=1e-5)
    half = solver(lambda v: scales.astype("bfloat16") * v, jnp.ones(3, "bfloat16"))
    assert (half.x.dtype, half.residual.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(flat(half.x), [0.5, 0.25, 0.125])
    with pytest.raises(ValueError, match=rf"{name}\(b\): got dtype complex64"):
        solver(lambda v: v, jnp.ones(2, "complex64"))
    with pytest.raises(ValueError, match=rf"{name}\(matvec\): its result: got shapes \[\(2,\)\]"):
        solver(lambda v: v[:2], jnp.ones(3))


@pytest.mark.slow
def test_products_of_another_precision(float64):
    scales = jnp.array([2.0, -4.0, 8.0], "float32")
    for solver in (linalg.minres, linalg.minres_qlp):
        wider = solver(lambda v: scales.astype("float64") * v.astype("float64"), scales)
        narrower = solver(lambda v: scales * v.astype("float32"), scales.astype("float64"))
        for found, dtype in ((wider, "float32"), (narrower, "float64")):
            assert (found.x.dtype, bool(found.converged)) == (dtype, True)
            np.testing.assert_allclose(found.x, 1, rtol=1e-6)


def test_a_start_where_b_is_zero():
    scales = jnp.arange(1.0, 9.0)
    for solver in (linalg.cg, linalg.minres):
        found = solver(lambda v: scales * v, jnp.zeros(8), start=jnp.ones(8), tolerance=1e-4)
        assert found.converged
        assert found.residual <= 1e-4
        np.testing.assert_allclose(found.x, 0, atol=1e-3)

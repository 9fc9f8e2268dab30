"""The Lanczos process against its identity and NumPy's eigenvalues."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import flat, random_tree, unchecked

from jaxnn import linalg
from jaxnn.linalg.tridiagonal import asymmetry_of, orthogonalized

N = 24


def symmetric(seed, n=N):
    m = np.random.default_rng(seed).normal(size=(n, n))
    return (m + m.T) / 2


def rotated(seed, values):
    """A matrix with those eigenvalues, and its eigenvectors as columns."""
    n = len(values)
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    return (q * values) @ q.T, q


def operator_of(matrix, dtype, structure="symmetric"):
    return linalg.from_dense(jnp.asarray(matrix, dtype), structure=structure)


def vector(seed, dtype, n=N):
    return jnp.asarray(np.random.default_rng(seed).normal(size=n), dtype)


def parts(found):
    """Q, T and ‖r‖ in float64."""
    diagonal, beside = (np.asarray(a, np.float64) for a in (found.diagonal, found.offdiagonal))
    t = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    return np.asarray(found.basis, np.float64), t, float(found.residual)


def satisfies(found, a, eps, scale):
    """Orthonormal rows as far as the rank, and A Qᵀ = Qᵀ T + r eᵀ, both to rounding."""
    q, t, residual = parts(found)
    exists = np.arange(len(q)) < int(found.rank)
    np.testing.assert_allclose(q @ q.T, np.diag(1.0 * exists), atol=10 * eps)
    rest = a @ q.T - q.T @ t
    np.testing.assert_allclose(rest[:, :-1], 0, atol=40 * eps * scale)
    assert abs(np.linalg.norm(rest[:, -1]) - residual) <= 40 * eps * scale
    np.testing.assert_allclose(q @ rest[:, -1], 0, atol=40 * eps * scale)
    assert np.all(np.isfinite(q))


@pytest.mark.parametrize("steps", [1, 2, 9, N])
def test_the_basis_is_orthonormal_and_tridiagonalizes(steps, dtype):
    eps = np.finfo(dtype).eps
    for seed in range(3):
        a, start = symmetric(seed), vector(seed, dtype)
        found = linalg.lanczos(operator_of(a, dtype), start, steps)
        a = np.asarray(jnp.asarray(a, dtype), np.float64)
        scale = np.linalg.norm(a, 2)
        satisfies(found, a, eps, scale)
        q, t, residual = parts(found)
        assert int(found.rank) == steps
        np.testing.assert_allclose(q[0], flat(start) / np.linalg.norm(flat(start)), atol=4 * eps)
        assert np.all(found.offdiagonal > 0)
        if steps == N:
            assert residual <= 40 * eps * scale
            np.testing.assert_allclose(
                np.linalg.eigvalsh(t), np.linalg.eigvalsh(a), atol=40 * eps * scale
            )


def test_the_first_steps_are_those_written_out(float64):
    a, q1 = symmetric(7), np.ones(N) / np.sqrt(N)
    found = linalg.lanczos(operator_of(a, "float64"), jnp.full(N, 3.0), 3)
    alpha1 = q1 @ a @ q1
    r = a @ q1 - alpha1 * q1
    beta1 = np.linalg.norm(r)
    q2 = r / beta1
    alpha2 = q2 @ a @ q2
    beta2 = np.linalg.norm(a @ q2 - alpha2 * q2 - beta1 * q1)
    np.testing.assert_allclose(found.diagonal[:2], [alpha1, alpha2], rtol=1e-12)
    np.testing.assert_allclose(found.offdiagonal, [beta1, beta2], rtol=1e-12)


def test_orthogonality_where_without_projection_it_is_lost(dtype):
    # A converged eigenvalue far away: without projection, copies of it come back.
    values = np.r_[1e3, np.linspace(0, 1, 199)]
    found = jax.jit(linalg.lanczos, static_argnums=2)(
        diagonal(values, dtype), vector(0, dtype, 200), 60
    )
    q, t, _ = parts(found)
    np.testing.assert_allclose(q @ q.T, np.eye(60), atol=20 * np.finfo(dtype).eps)
    assert np.sum(np.linalg.eigvalsh(t) > 500) == 1


def multiply(values, v):
    return values * v


def diagonal(values, dtype):
    values = jnp.asarray(values, dtype)
    product = jax.tree_util.Partial(multiply, values)
    return linalg.LinearOperator(product, product, values, values, structure="symmetric")


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        (np.full(N, 2.0), 1),
        (np.zeros(N), 1),
        (np.r_[np.zeros(N - 3), [1.0, 2.0, 3.0]], 4),
        (np.r_[np.ones(N - 4), [-5.0] * 4], 2),
        (np.repeat([1.0, -2.0, 4.0, 1e-3], N // 4), 4),
        (1e-12 * np.repeat([1.0, 3.0], N // 2), 2),
        (1e12 * np.repeat([1.0, 3.0, -1.0], N // 3), 3),
    ],
)
def test_invariant_subspaces_end_it(values, rank, dtype):
    found = linalg.lanczos(diagonal(values, dtype), vector(1, dtype), 9)
    assert int(found.rank) == rank
    assert found.residual == 0
    scale = np.max(np.abs(values))
    exact = np.diag(np.asarray(jnp.asarray(values, dtype), np.float64))
    satisfies(found, exact, np.finfo(dtype).eps, scale)
    _, t, _ = parts(found)
    theta = np.linalg.eigvalsh(t[:rank, :rank])
    np.testing.assert_allclose(
        theta, np.unique(exact.diagonal()), atol=20 * np.finfo(dtype).eps * scale
    )
    assert not np.any(t[rank:])


def test_a_start_in_an_invariant_subspace(float64):
    a, q = rotated(0, np.linspace(-3, 4, N))
    start = jnp.asarray(q[:, [2, 7, 20]] @ [1.0, -2.0, 0.5])
    found = linalg.lanczos(operator_of(a, "float64"), start, 3)
    assert float(found.residual) <= 1e-13
    theta = np.linalg.eigvalsh(parts(found)[1])
    np.testing.assert_allclose(theta, np.linspace(-3, 4, N)[[2, 7, 20]], atol=1e-12)
    exact = diagonal(np.linspace(-3, 4, N), "float64")
    found = linalg.lanczos(exact, jnp.zeros(N).at[jnp.array([2, 7, 20])].set(1.0), 8)
    assert (int(found.rank), float(found.residual)) == (3, 0.0)


def test_a_start_of_zero(dtype):
    found = linalg.lanczos(operator_of(symmetric(0), dtype), jnp.zeros(N, dtype), 4)
    assert int(found.rank) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_one_dimension(dtype):
    found = linalg.lanczos(operator_of([[-3.0]], dtype), jnp.full(1, 0.1, dtype), 1)
    assert (int(found.rank), float(found.residual)) == (1, 0.0)
    np.testing.assert_allclose(found.diagonal, [-3.0], rtol=1e-6)
    assert found.offdiagonal.shape == (0,)


def test_trees_jit_and_vmap(dtype):
    shapes = {"W": (4, 3), "b": [(5,), ()], "none": (0, 2)}
    space = random_tree(0, shapes, dtype)
    n = 18
    a = np.stack([symmetric(seed, n) for seed in range(3)])
    operators = jax.vmap(lambda m: linalg.from_dense(m, space, space, structure="symmetric"))(
        jnp.asarray(a, dtype)
    )
    run = jax.jit(jax.vmap(partial(linalg.lanczos, steps=5), in_axes=(0, None)))
    found = run(operators, space)
    assert jax.tree.map(jnp.shape, found.basis) == jax.tree.map(
        lambda leaf: (3, 5, *leaf.shape), space
    )
    coordinates = linalg.coordinates(space)
    rows = jax.vmap(jax.vmap(coordinates.ravel))(found.basis)
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], found)._replace(basis=rows[i])
        m = np.asarray(jnp.asarray(a[i], dtype), np.float64)
        satisfies(one, m, np.finfo(dtype).eps, np.linalg.norm(m, 2))


def test_a_hessian_is_run_as_its_matrix_is(float64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(10, 4)))
    objective = lambda w, x: jnp.mean(jnp.cosh(x @ w) ** 0.5)
    H = linalg.hessian(objective, jnp.arange(4.0) / 4, x, batch_size=4)
    start = jnp.ones(4)
    found = linalg.lanczos(H, start, 4)
    by_matrix = linalg.lanczos(linalg.stored(H), start, 4)
    for one, other in zip(found, by_matrix, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)


def test_products_of_numpy_and_of_solvers(float64):
    # A solver that stops when it is content is not its derivative: at 0 it is content at once, and
    # at 1, ..., 1, which the differences annihilate, after one step.
    differences = np.diff(np.eye(N), axis=0)
    matrix = np.eye(N) + differences.T @ differences
    inverse = np.linalg.inv(matrix)

    def by_numpy(v):
        kind = jax.ShapeDtypeStruct(v.shape, v.dtype)
        return jax.pure_callback(lambda v: inverse @ np.asarray(v), kind, v)

    def solved(v):
        return linalg.cg(lambda u: jnp.asarray(matrix) @ u, v, tolerance=1e-14).x

    start = vector(0, "float64")
    exact = linalg.lanczos(operator_of(inverse, "float64"), start, 6)
    for product in (by_numpy, solved):
        A = linalg.LinearOperator(product, product, start, start, structure="symmetric")
        found = linalg.lanczos(A, start, 6)
        np.testing.assert_allclose(found.diagonal, exact.diagonal, rtol=1e-9)
        np.testing.assert_allclose(found.offdiagonal, exact.offdiagonal, rtol=1e-9)


def test_projecting_twice_where_once_is_not_enough(dtype):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 6)))[0].T
    inside, outside = basis[:5].sum(0), basis[5]
    eps = np.finfo(dtype).eps
    rows = jnp.asarray(basis[:5], dtype)
    for small in (1.0, 1e-2, 100 * eps):
        w, h = orthogonalized(jnp.asarray(inside + small * outside, dtype), rows)
        unit = flat(w) / np.linalg.norm(flat(w))
        np.testing.assert_allclose(basis[:5] @ unit, 0, atol=10 * eps)
        np.testing.assert_allclose(h, 1.0, atol=10 * eps)
    w, _ = orthogonalized(jnp.asarray(inside, dtype), rows)
    assert np.linalg.norm(w) <= 10 * eps


def test_asymmetry(float64):
    a, b = np.random.default_rng(0).normal(size=(2, N, N))
    skew = (b - b.T) / 2
    key = jax.random.key(3)
    u, v = np.asarray(jax.random.normal(key, (2, N)))
    for m in (a, a + a.T + 1e-6 * skew, skew):
        exact = abs(u @ m @ v - v @ m @ u)
        exact /= np.linalg.norm(m @ v) * np.linalg.norm(u) + np.linalg.norm(m @ u) * np.linalg.norm(
            v
        )
        measured = asymmetry_of(operator_of(m, "float64", "general"), key)
        np.testing.assert_allclose(measured, exact, rtol=1e-8)
    assert asymmetry_of(operator_of(a + a.T, "float64", "general"), key) <= 1e-15
    assert asymmetry_of(operator_of(0 * a, "float64", "general"), key) == 0


@pytest.mark.parametrize("function", ["lanczos", "eigsh"])
def test_an_operator_that_is_not_symmetric(function, dtype):
    run = {
        "lanczos": lambda A: linalg.lanczos(A, vector(0, dtype), 3),
        "eigsh": lambda A: linalg.eigsh(A, 3, key=jax.random.key(0)),
    }[function]
    a = symmetric(0)
    run(operator_of(a, dtype, "general"))  # is seen to be symmetric
    crooked = a + 1e-2 * np.triu(a)
    expected = float(asymmetry_of(operator_of(crooked, dtype, "general"), jax.random.key(0)))
    measured = rf"{function}\(operator\): got one with .* = {expected:.2g} .*, expected a symmetric"
    with pytest.raises(ValueError, match=measured.replace("+", r"\+")):
        run(operator_of(crooked, dtype, "general"))
    run(operator_of(crooked, dtype, "symmetric"))  # a declaration is believed
    jax.jit(run)(operator_of(crooked, dtype, "general"))  # nothing can be raised


A = linalg.from_dense(jnp.eye(3), structure="symmetric")


@pytest.mark.parametrize("steps", [0, -1, 4])
def test_steps_that_are_too_few_or_too_many(steps):
    with pytest.raises(ValueError, match=rf"lanczos\(steps\): got {steps}, expected an integer fr"):
        linalg.lanczos(A, jnp.ones(3), steps)


@pytest.mark.parametrize("start", [jnp.ones(4), jnp.ones(3, "bfloat16"), {"a": jnp.ones(3)}, None])
def test_starts_that_do_not_fit(start):
    for name, run in [
        ("lanczos", lambda: linalg.lanczos(A, start, 2)),
        ("eigsh", lambda: linalg.eigsh(A, 1, key=jax.random.key(0), start=start)),
    ]:
        if start is None and name == "eigsh":
            continue
        with (
            unchecked(),
            pytest.raises(ValueError, match=rf"{name}\(start\): got .*, expected the"),
        ):
            run()


def test_maps_between_different_spaces():
    for bad in (
        linalg.from_dense(jnp.ones((2, 3))),
        linalg.from_dense(jnp.eye(3), jnp.ones(3), {"a": jnp.ones(3)}),
        linalg.from_dense(jnp.ones((0, 0))),
    ):
        shape = (
            rf"got an operator of shape \({bad.shape[0]}, {bad.shape[1]}\), expected a map of on"
        )
        with pytest.raises(ValueError, match=r"lanczos\(operator\): " + shape):
            linalg.lanczos(bad, jnp.ones(3), 1)
        with pytest.raises(ValueError, match=r"eigsh\(operator\): " + shape):
            linalg.eigsh(bad, 1, key=jax.random.key(0))


def test_complex_maps(dtype):
    hermitian = linalg.from_dense(jnp.array([[1, 2j], [-2j, 3]]))
    key = jax.random.key(0)
    for name, run in {
        "lanczos": lambda: linalg.lanczos(hermitian, jnp.ones(2, hermitian.domain.dtype), 1),
        "eigsh": lambda: linalg.eigsh(hermitian, 1, key=key),
        "spectral_density": lambda: linalg.spectral_density(hermitian, key, steps=1),
        "trace": lambda: linalg.trace(hermitian, key),
        "diagonal": lambda: linalg.diagonal(hermitian, key),
    }.items():
        with pytest.raises(ValueError, match=rf"{name}\(operator\): got dtypes complex\d+, expe"):
            run()

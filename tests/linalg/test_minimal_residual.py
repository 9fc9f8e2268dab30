"""MINRES against brute-force minimizers and SciPy, MINRES-QLP against pseudo-inverses."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from oracles import flat, random_tree, unchecked

from jaxnn import linalg
from jaxnn.linalg.minimal_residual import minres
from jaxnn.linalg.pseudo_inverse import minres_qlp

N = 24


def symmetric(seed, condition, rank=N, n=N):
    """An indefinite matrix with singular values 3, ..., 3/condition and 0, and its A⁺."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0][:, :rank]
    values = 3 * np.geomspace(1.0, 1 / condition, rank) * np.where(np.arange(rank) % 3, 1, -1)
    a = (q * values) @ q.T
    return (a + a.T) / 2, (q / values) @ q.T, rng.normal(size=n) * 5


@cache
def compiled(method, max_steps):
    return jax.jit(
        lambda a, b, shift, options: method(
            lambda v: a @ v, b, shift=shift, max_steps=max_steps, **options
        )
    )


def solver(method, *, max_steps=1000, **options):
    """`method` on stored matrices, compiled once for each shape, dtype and number of steps."""
    run = compiled(method, max_steps)
    return lambda a, b, shift=0.0: run(jnp.asarray(a), jnp.asarray(b), shift, options)


def relative(x, y):
    return np.linalg.norm(np.asarray(x, np.float64) - y) / np.linalg.norm(y)


def krylov_minimizer(a, b, k, inverse=None):
    """argmin of ‖b - Ax‖ (of M⁻¹, where given) over span{b, Ab, ...}, of M⁻¹b and M⁻¹A."""
    inverse = np.eye(len(b)) if inverse is None else inverse
    basis = np.linalg.qr((inverse @ b)[:, None])[0]
    for _ in range(k - 1):
        new = inverse @ a @ basis[:, -1:]
        for _ in range(2):
            new -= basis @ (basis.T @ new)
        basis = np.hstack([basis, new / np.linalg.norm(new)])
    root = np.linalg.cholesky(inverse).T
    return basis @ np.linalg.lstsq(root @ a @ basis, root @ b, rcond=None)[0]


@pytest.mark.parametrize("method", [minres, minres_qlp])
@pytest.mark.parametrize("k", [2, 9])
def test_after_k_steps_no_x_of_the_krylov_space_is_better(method, k, float64):
    run = solver(method, tolerance=1e-14, max_steps=k)
    for seed in (0, 1):
        a, _, b = symmetric(seed, 20.0)
        found = run(a, b)
        assert relative(found.x, krylov_minimizer(a, b, k)) <= 1e-12
        assert (int(found.steps), bool(found.converged)) == (k, False)
        residual = np.linalg.norm(b - a @ found.x) / np.linalg.norm(b)
        np.testing.assert_allclose(found.residual, residual, rtol=1e-12)


def test_a_preconditioner_changes_the_norm_that_is_minimized(float64):
    a, _, b = symmetric(2, 20.0)
    half = np.random.default_rng(3).normal(size=(N, N)) / N**0.5
    inverse = half @ half.T + 0.5 * np.eye(N)
    for k in (1, 5):
        found = minres(lambda v: a @ v, jnp.asarray(b), preconditioner=lambda r: inverse @ r,
                       tolerance=1e-14, max_steps=k)  # fmt: skip
        assert relative(found.x, krylov_minimizer(a, b, k, inverse)) <= 1e-12


def test_a_good_preconditioner_saves_steps(float64):
    a, _, b = symmetric(4, 5.0)
    scales = np.geomspace(1.0, 1e3, N)
    a = scales[:, None] * a * scales
    run = lambda m: minres(lambda v: a @ v, jnp.asarray(b), preconditioner=m, tolerance=1e-10)
    plain, scaled = run(lambda r: r), run(lambda r: r / scales**2)
    assert scaled.converged
    assert relative(scaled.x, np.linalg.solve(a, b)) <= 1e-6
    assert np.linalg.norm(b - a @ scaled.x) <= 1.01e-10 * np.linalg.norm(b)
    assert int(scaled.steps) < 0.5 * int(plain.steps)


@pytest.mark.parametrize("shift", [0.0, 0.7, -1.3])
def test_iterates_and_their_number_are_those_of_scipy(shift, float64):
    a, _, b = symmetric(5, 10.0)
    theirs = []
    keep = lambda x: theirs.append(np.copy(x))
    scipy.sparse.linalg.minres(a, b, shift=shift, rtol=1e-15, maxiter=40, callback=keep)
    system = a - shift * np.eye(N)
    near = [bool(np.linalg.norm(b - system @ x) <= 1e-8 * np.linalg.norm(b)) for x in theirs]
    for method in (minres, minres_qlp):
        found = solver(method, tolerance=1e-8)(a, b, shift)
        assert int(found.steps) == 1 + near.index(True)
        assert relative(found.x, theirs[near.index(True)]) <= 2e-8
        assert relative(found.x, np.linalg.solve(system, b)) <= 1e-6


@pytest.mark.parametrize("method", [minres, minres_qlp])
def test_indefinite_systems_in_both_precisions(method, dtype):
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype.name]
    run = solver(method, tolerance=tolerance)
    for seed in (6, 7):
        for condition in (3.0, 100.0):
            a, _, b = symmetric(seed, condition)
            found = run(a.astype(dtype), b.astype(dtype))
            assert found.x.dtype == found.residual.dtype == dtype
            assert found.converged
            assert relative(found.x, np.linalg.solve(a, b)) <= 2 * condition * tolerance


def test_ill_conditioned_systems(float64):
    run, qlp = solver(minres, tolerance=1e-12), solver(minres_qlp, tolerance=1e-12)
    for seed in (8, 9):
        a, inverse, b = symmetric(seed, 1e6)
        easy = a @ np.random.default_rng(seed).normal(size=N)
        # With ‖x‖ = ‖b‖ the tolerance can be met; of a general b, a residual of eps ‖A‖‖x‖.
        for right, residual in ((easy, 1e-12), (b, 1e-9)):
            for found in (run(a, right), qlp(a, right)):
                true = np.linalg.norm(right - a @ found.x) / np.linalg.norm(right)
                assert true <= residual
                np.testing.assert_allclose(found.residual, true, rtol=0.5, atol=1e-11)
                assert relative(found.x, inverse @ right) <= 1e-6 if right is easy else 1e-8
        assert run(a, easy).converged
        assert qlp(a, easy).converged
        assert qlp(a, b).compatible
        assert run(a, b).converged == (run(a, b).residual <= 1e-12)  # never out of politeness


@pytest.mark.parametrize("condition", [10.0, 1e3, 1e6])
@pytest.mark.parametrize("rank", [N - 1, N - 9, 2])
def test_the_solution_is_that_of_the_pseudo_inverse(condition, rank, float64):
    run = solver(minres_qlp, tolerance=1e-12)
    for seed in (10, 11):
        a, inverse, b = symmetric(seed, condition, rank)
        outside = b - a @ inverse @ b
        inside = a @ np.random.default_rng(seed).normal(size=N)
        for right, compatible in (
            (inside, True),
            (b, False),
            (inside + 1e-4 * outside, False),
        ):
            found = run(a, right)
            assert (bool(found.converged), bool(found.compatible)) == (True, compatible)
            assert relative(found.x, inverse @ right) <= 1e-13 * condition**1.5
            rest = right - a @ found.x
            np.testing.assert_allclose(
                found.residual * np.linalg.norm(right), np.linalg.norm(rest), atol=1e-13
            )


def test_singular_systems_in_float32():
    run = solver(minres_qlp, tolerance=1e-5)
    for seed in (12, 13):
        a, inverse, b = (np.asarray(m, np.float32) for m in symmetric(seed, 30.0, N - 6))
        found = run(a, b)
        assert (bool(found.converged), bool(found.compatible)) == (True, False)
        assert relative(found.x, inverse @ b) <= 1e-3
        assert run(a, a @ b).compatible


def test_what_is_reported(float64):
    for condition in (5.0, 200.0):
        a, _, b = symmetric(14, condition, N - 5)
        found = solver(minres_qlp, tolerance=0.03)(a, b)
        rest = b - a @ found.x
        shrunk = np.linalg.norm(a @ rest) / (found.norm * np.linalg.norm(rest))
        # r is known to ε‖b‖, and so is A r.
        np.testing.assert_allclose(found.least_squares_residual, shrunk, rtol=1e-9, atol=1e-15)
        found = solver(minres_qlp, tolerance=1e-12)(a, b)
        assert found.least_squares_residual <= 1e-12
        assert 0.5 * 3 <= found.norm <= 3 * (1 + 1e-12)
        assert 0.3 * condition <= found.condition <= condition * (1 + 1e-9)


def test_singular_values_below_the_limit_count_as_zeros(float64):
    a, _, b = symmetric(15, 10.0, N - 4)
    values, q = np.linalg.eigh(a)
    values[np.abs(values) < 1e-12] = 3e-8
    small = (q * values) @ q.T
    exact, cut = np.linalg.solve(small, b), np.linalg.pinv(small, rcond=1e-6) @ b
    found = solver(minres_qlp, tolerance=1e-12)(small, b)
    assert found.compatible
    assert relative(found.x, exact) <= 1e-6
    found = solver(minres_qlp, tolerance=1e-12, max_condition=1e6)(small, b)
    assert (bool(found.converged), bool(found.compatible)) == (True, False)
    assert relative(found.x, cut) <= 1e-5


def breakdowns():
    rng = np.random.default_rng(16)
    q = np.linalg.qr(rng.normal(size=(N, N)))[0]
    low, b = (q[:, :3] * [3.0, -1.0, 0.5]) @ q[:, :3].T, rng.normal(size=N)
    swap = np.eye(N)[::-1]
    return {
        "b = 0": (low, 0 * b),
        "A = 0": (0 * low, b),
        "A = 2I": (2 * np.eye(N), b),
        "low rank": (low, b),
        "eigenvector": (low, 7 * q[:, 1]),
        "null vector": (low, q[:, 5]),
        "two eigenvectors": (low, q[:, 1] - q[:, 2]),
        "eigenvector and null vector": (low, q[:, 1] + q[:, 5]),
        "null vector up to rounding": (np.diag([3.0] * (N - 1) + [1e-20]), np.eye(N)[-1]),
        "no first step": (swap, np.eye(N)[0]),
        "small A": (1e-25 * low, b),
        "large A": (1e12 * low, b),
        "small b": (low, 1e-30 * b),
    }


def test_breakdowns(dtype):
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype.name]
    qlp, plain = solver(minres_qlp, tolerance=tolerance), solver(minres, tolerance=tolerance)
    for name, (a, b) in breakdowns().items():
        found = qlp(a.astype(dtype), b.astype(dtype))
        assert found.converged, name
        x = np.linalg.pinv(a, rcond=1e-10) @ b
        rest = np.linalg.norm(b - a @ x)
        # Relative to ‖A⁺‖‖b‖: of a null vector, x is 0.
        scale = np.linalg.norm(np.linalg.pinv(a, rcond=1e-10), 2) * np.linalg.norm(b)
        assert np.linalg.norm(np.float64(found.x) - x) <= 30 * tolerance * scale, name
        assert found.compatible == (rest <= 1e-9 * np.linalg.norm(b)), name
        assert np.all(np.isfinite([*found[1:]])), name
        assert int(found.steps) <= 12, name
        if name == "null vector up to rounding":
            continue  # minres has no way to tell, and solves it
        found = plain(a.astype(dtype), b.astype(dtype))
        if name != "null vector":  # there A b is rounding, and when that ends the compiler's choice
            assert int(found.steps) <= 20, name
        assert np.all(np.isfinite([*found.x, found.residual])), name
        assert found.converged == (rest <= 1e-9 * np.linalg.norm(b)), name
        assert found.converged == (found.residual <= tolerance), name


def test_dimension_one(float64):
    for method in (minres, minres_qlp):
        found = solver(method, tolerance=1e-12)(np.array([[-4.0]]), np.array([2.0]))
        assert found.converged
        np.testing.assert_allclose(found.x, [-0.5], rtol=1e-15)


def test_a_product_that_is_not_a_number(float64):
    a, _, b = symmetric(20, 10.0)
    for method in (minres, minres_qlp):
        found = solver(method, tolerance=1e-12)(np.nan * a, b)
        assert not found.converged
        assert int(found.steps) == 1
        assert np.all(found.x == 0)


def test_a_preconditioner_that_is_not_positive_definite(float64):
    found = minres(lambda v: 2.0 * v, jnp.ones(3), preconditioner=lambda r: -r)
    assert not found.converged
    assert np.all(np.isfinite(found.x))


def test_pytrees_and_starts(float64):
    a, _, b = symmetric(17, 20.0)
    rows = lambda t: jnp.concatenate([t["a"], jnp.ravel(t["b"])])
    parts = lambda v: {"a": v[:10], "b": v[10:].reshape(2, 7)}
    product, right = lambda t: parts(a @ rows(t)), parts(jnp.asarray(b))
    found = minres(product, right, tolerance=1e-11)
    assert found.x["b"].shape == (2, 7)
    assert relative(rows(found.x), np.linalg.solve(a, b)) <= 1e-9
    again = minres(product, right, start=found.x, tolerance=1e-9)
    assert (int(again.steps), bool(again.converged)) == (0, True)
    near = minres(product, right, start=parts(rows(found.x) + 1e-3), tolerance=1e-9)
    assert near.converged
    assert relative(rows(near.x), np.linalg.solve(a, b)) <= 1e-7
    far = minres(product, right, start=parts(jnp.ones(N)), tolerance=1e-14, max_steps=3)
    step = krylov_minimizer(a, b - a @ np.ones(N), 3)
    assert relative(rows(far.x), 1 + step) <= 1e-12


def test_newton_steps_on_a_singular_indefinite_hessian(float64):
    # A product of matrices may be rescaled at no cost: its Hessian has zero eigenvalues where the
    # gradient vanishes, and at other points both signs.
    params = random_tree(18, {"U": (2, 3), "V": (3, 2)}, float64)
    target = random_tree(19, (2, 2), float64)
    objective = lambda p: jnp.sum((p["U"] @ p["V"] - target) ** 2)
    found = jax.jit(
        lambda p: minres_qlp(linalg.hessian(objective, p), jax.grad(objective)(p), tolerance=1e-12)
    )(params)
    dense = np.asarray(linalg.hessian(objective, params).to_dense())
    assert np.linalg.eigvalsh(dense)[0] < -0.1
    exact = np.linalg.pinv(dense, rcond=1e-10, hermitian=True) @ flat(jax.grad(objective)(params))
    assert found.converged
    assert relative(flat(found.x), exact) <= 1e-10


@pytest.mark.slow
def test_vmap_does_each_as_if_alone(float64):
    a, inverse, b = symmetric(20, 30.0, N - 5)
    null = b - a @ inverse @ b
    stack = jnp.asarray(np.stack([b, a @ b, null, 0 * b, inverse @ b + 1e-3 * null]))
    for method in (minres_qlp, minres):
        run = lambda b, method=method: method(lambda v: a @ v, b, tolerance=1e-10)
        together, alone = jax.jit(jax.vmap(run))(stack), solver(method, tolerance=1e-10)
        for i, right in enumerate(stack):
            one = alone(a, right)
            assert together.converged[i] == one.converged == (method is minres_qlp or i in (1, 3))
            assert abs(int(together.steps[i]) - int(one.steps)) <= 10
            if one.converged:
                np.testing.assert_allclose(together.x[i], one.x, atol=1e-8)


def test_bad_input():
    matvec, b = lambda v: v, jnp.ones(2)
    with unchecked():
        with pytest.raises(ValueError, match=r"minres\(tolerance\): got 0"):
            minres(matvec, b, tolerance=0.0)
        with pytest.raises(ValueError, match=r"minres_qlp\(tolerance\): got 1"):
            minres_qlp(matvec, b, tolerance=1.0)
        with pytest.raises(ValueError, match=r"minres_qlp\(max_condition\): got 0.5"):
            minres_qlp(matvec, b, max_condition=0.5)
        with pytest.raises(ValueError, match=r"minres_qlp\(max_steps\): got 0"):
            minres_qlp(matvec, b, max_steps=0)


def test_what_is_left_of_a_start_where_b_is_zero():
    found = minres(lambda v: 2 * v, jnp.zeros(2), start=jnp.ones(2), max_steps=0)
    assert (float(found.residual), bool(found.converged)) == (1.0, False)  # of the start's

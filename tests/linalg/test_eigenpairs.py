"""Eigenpairs against known spectra, NumPy and SciPy; residuals against products in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.tree_util import Partial
from oracles import flat, random_tree, unchecked

from jaxnn import linalg
from jaxnn.linalg.restarts import restarted

N = 240  # more than 4 · 24 and 40 · 5: not solved densely, with a shift neither
KEY = jax.random.key(0)
SMALL = 5  # the basis with a shift
WHICH = ("largest", "smallest", "both", "magnitude")


def multiply(values, v):
    return values * v


def diagonal(values):
    product = Partial(multiply, values)
    return linalg.LinearOperator(product, product, values, values, structure="symmetric")


def wanted(values, k, which, shift=None):
    """The eigenvalues asked for, as the docstring orders them."""
    rising = np.sort(np.asarray(values, np.float64))
    if shift is not None:
        return rising[np.argsort(np.abs(rising - shift), kind="stable")][:k]
    return {
        "largest": rising[::-1][:k],
        "smallest": rising[:k],
        "both": np.r_[rising[::-1][: (k + 1) // 2], rising[: k // 2][::-1]],
        "magnitude": rising[np.argsort(-np.abs(rising), kind="stable")][:k],
    }[which]


def right(found, a, exact, tolerance):
    """Values, unit vectors, residuals and convergence, against a matrix in NumPy float64."""
    assert found.converged
    values, vectors = (np.asarray(x, np.float64) for x in (found.values, found.vectors))
    scale = np.linalg.norm(a, 2) if a.ndim == 2 else np.max(np.abs(a))
    np.testing.assert_allclose(values, exact, atol=tolerance * scale, rtol=0)
    gram = 500 * np.finfo(found.values.dtype).eps
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(values)), atol=gram)
    images = vectors @ a if a.ndim == 2 else vectors * a
    residuals = np.linalg.norm(images - values[:, None] * vectors, axis=1)
    noise = 50 * np.finfo(found.values.dtype).eps * scale
    np.testing.assert_allclose(found.residuals, residuals, atol=noise)
    assert np.all(residuals <= np.finfo(found.values.dtype).eps ** (2 / 3) * scale + noise)


TOLERANCE = {"float32": 2e-6, "float64": 1e-11}
bulk = np.random.default_rng(0).normal(size=N)
SPECTRA = {
    "outliers": np.r_[10, -9, 8, 7, bulk[4:]],
    "random": bulk,
    "geometric": np.geomspace(1.0, 30.0, N),
    "clustered": np.r_[5 + 1e-5 * np.arange(3), -5 - 1e-4 * np.arange(3), bulk[6:] / 2],
    "repeated": np.r_[[3.0] * 4, [-2.5] * 3, np.linspace(-2, 2, N - 7)],
    "hidden": np.r_[1.0, 1.0, 0.99, -1.0, -1.0, -0.985, np.linspace(-0.98, 0.98, N - 6)],
    "low rank": np.r_[4.0, 2.0, -1.0, np.zeros(N - 3)],
    "2 I": np.full(N, 2.0),
    "zero": np.zeros(N),
    "tiny": 1e-9 * np.r_[10, -9, 8, 7, bulk[4:]],
    "huge": 1e9 * np.r_[10, -9, 8, 7, bulk[4:]],
}


@pytest.mark.parametrize("which", WHICH)
def test_known_spectra(which, dtype):
    for name, values in SPECTRA.items():
        values = jnp.asarray(values, dtype)
        found = linalg.eigsh(diagonal(values), 3, which=which, key=KEY)
        exact = np.asarray(values, np.float64)
        expected = wanted(exact, 3, which)
        if which == "magnitude":  # ±λ is a tie
            order = np.sort(np.abs(expected))[::-1]
            found_order = np.abs(np.asarray(found.values, np.float64))
            scale = max(np.max(np.abs(exact)), 1e-300)
            np.testing.assert_allclose(found_order / scale, order / scale, atol=2e-6, err_msg=name)
            expected = np.asarray(found.values, np.float64)
        right(found, exact, expected, TOLERANCE[dtype.name])


def test_copies_that_the_first_vector_does_not_see(float64):
    # Their gap to what is found first is a hundredth of the spectrum, or a thousandth of it.
    runs = [partial(linalg.eigsh, k=2, basis_size=size) for size in (None, 6)]
    for gap in (1e-2, 1e-3):
        values = jnp.asarray(np.r_[1.0, 1.0, 1 - gap, np.linspace(0, 1 - 2 * gap, N - 3)])
        for run in runs:
            for seed in range(10):
                found = run(diagonal(values), key=jax.random.key(seed))
                right(found, np.asarray(values), [1.0, 1.0], 1e-11)


@pytest.mark.parametrize(("k", "which"), [(1, "both"), (8, "largest")])
def test_how_many(k, which, float64):
    a = np.random.default_rng(k).normal(size=(N, N))
    a = a + a.T + np.diag(np.r_[[90.0] * 2, np.zeros(N - 2)])
    A = linalg.from_dense(a, structure="symmetric")
    found = linalg.eigsh(A, k, which=which, key=KEY)
    right(found, a, wanted(np.linalg.eigvalsh(a), k, which), 1e-11)
    if which == "largest":
        by_scipy = scipy.sparse.linalg.eigsh(a, k, which="LA", return_eigenvectors=False)
        np.testing.assert_allclose(found.values, np.sort(by_scipy)[::-1], atol=1e-8)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_small_spaces_are_solved_densely(n, dtype):
    a = np.random.default_rng(n).normal(size=(n, n))
    a = np.asarray(jnp.asarray(a + a.T, dtype), np.float64)
    A = linalg.from_dense(jnp.asarray(a, dtype), structure="symmetric")
    for k in {1, n}:
        for options in ({"which": "largest"}, {"which": "both"}, {"shift": 0.3}):
            found = linalg.eigsh(A, k, key=KEY, **options)
            exact = wanted(np.linalg.eigvalsh(a), k, **{"which": None, **options})
            right(found, a, exact, TOLERANCE[dtype.name])
            assert int(found.products) == n + k
    for matrix in (2 * np.eye(n), 0 * np.eye(n)):
        A = linalg.from_dense(jnp.asarray(matrix, dtype), structure="symmetric")
        right(linalg.eigsh(A, n, key=KEY), matrix, matrix.diagonal(), TOLERANCE[dtype.name])


def test_by_shift(dtype):
    k = 3
    run = partial(linalg.eigsh, k=k, key=KEY, basis_size=SMALL)
    spread = np.linspace(-1, 1, N)
    gap = 2 / (N - 1)
    cases = [
        (spread, 20.3 * gap - 1),  # in the interior
        (spread, spread[50] + 1e-3 * gap),  # next to an eigenvalue
        (np.r_[[0.5] * 3, np.linspace(-1, 0.2, N - 3)], 0.45),  # repeated
        (np.r_[np.zeros(N - 9), np.linspace(1, 2, 9)], 1.6),  # of low rank
        (np.r_[np.zeros(N - 9), np.linspace(1, 2, 9)], 0.0),  # at an eigenvalue: no inverse
        (np.full(N, 2.0), 1.9),
        (np.full(N, 2.0), 2.0),
        (np.zeros(N), 0.0),
        (spread, -1.05),  # outside
    ]
    for values, shift in cases:
        values = jnp.asarray(values, dtype)
        found = run(diagonal(values), shift=jnp.asarray(shift, dtype))
        exact = np.asarray(values, np.float64)
        expected = wanted(exact, k, None, float(jnp.asarray(shift, dtype)))
        # σ may have been moved by 5e-4 in float32; pairs as near as that may have changed places.
        order = np.argsort(np.asarray(found.values))
        found = found._replace(
            values=found.values[order],
            vectors=found.vectors[order],
            residuals=found.residuals[order],
        )
        right(found, exact, np.sort(expected), TOLERANCE[dtype.name])


@pytest.mark.slow
def test_the_nearest_comes_first(float64):
    values = jnp.linspace(0.0, float(N - 1), N)
    found = linalg.eigsh(diagonal(values), 3, shift=jnp.asarray(50.3), key=KEY, basis_size=SMALL)
    right(found, np.asarray(values), [50.0, 51.0, 49.0], 1e-11)
    with pytest.raises(AssertionError):
        right(found, np.asarray(values), [49.0, 50.0, 51.0], 1e-11)


def test_a_start_that_says_nothing_about_the_size(float64):
    values = jnp.asarray(np.r_[0.01, 0.03, -0.02, np.linspace(1.0, 1e3, N - 3)])
    for start in (jnp.zeros(N), jnp.zeros(N).at[0].set(1.0)):
        found = linalg.eigsh(
            diagonal(values), 3, shift=jnp.zeros(()), start=start, key=KEY, basis_size=SMALL
        )
        right(found, np.asarray(values), [0.01, -0.02, 0.03], 1e-11)


@pytest.mark.parametrize("entry", [0.0, np.nan, np.inf])
def test_a_start_without_a_direction_is_replaced(entry, float64):
    start = jnp.zeros(N).at[3].set(entry)
    found = linalg.eigsh(diagonal(jnp.asarray(SPECTRA["outliers"])), 2, start=start, key=KEY)
    right(found, SPECTRA["outliers"], [10.0, 8.0], 1e-11)


def counted(values, calls):
    """A diagonal map that counts how often it is applied."""

    def product(v):
        count = lambda _: np.float32(len(calls.append(1) or ()))
        none = jax.pure_callback(count, jax.ShapeDtypeStruct((), "float32"), v[0])
        return values * v + none.astype(v.dtype)

    return linalg.LinearOperator(product, product, values, values, structure="symmetric")


@pytest.mark.slow
def test_products_are_counted(float64):
    which = "both"
    calls = []
    values = jnp.asarray(SPECTRA["outliers"])
    found = jax.block_until_ready(linalg.eigsh(counted(values, calls), 3, which=which, key=KEY))
    assert int(found.products) == len(calls)
    right(found, np.asarray(values), wanted(values, 3, which), 1e-11)
    calls.clear()
    few = linalg.eigsh(counted(values, calls), 3, which=which, key=KEY, max_products=8)
    assert int(few.products) == len(calls) == 8 + 3


@pytest.mark.slow
def test_products_are_counted_with_a_shift(float64):
    calls = []
    values = jnp.linspace(1.0, 4.0, N)
    found = jax.block_until_ready(
        linalg.eigsh(counted(values, calls), 2, shift=4.3, key=KEY, basis_size=SMALL)
    )
    solved = 60  # a bound of the solutions; MINRES may start again in one, and check again
    assert int(found.products) <= len(calls) <= int(found.products) + solved


def test_a_near_start_saves_products(float64):
    values = jnp.linspace(0.0, 1.0, N) ** 4
    run = partial(linalg.eigsh, k=3, key=KEY)
    cold = run(diagonal(values))
    nearby = cold.vectors.sum(0) + 1e-4 * jax.random.normal(KEY, (N,)) / N**0.5
    warm = run(diagonal(values * 1.001), start=nearby)
    right(warm, np.asarray(values) * 1.001, 1.001 * np.asarray(values)[:-4:-1], 1e-11)
    assert int(warm.products) <= 0.8 * int(cold.products)
    eigenvector = run(diagonal(values), start=cold.vectors[0])
    right(eigenvector, np.asarray(values), np.asarray(values)[:-4:-1], 1e-11)
    nothing = run(diagonal(values), start=jnp.zeros(N))
    right(nothing, np.asarray(values), np.asarray(values)[:-4:-1], 1e-11)


@pytest.mark.parametrize("shift", [None, 0.1])
@pytest.mark.parametrize("max_products", [0, 1, 9, 30])
def test_products_that_do_not_suffice(max_products, shift, float64):
    values = jnp.linspace(0.0, 1.0, N)
    size, shift = (None, None) if shift is None else (SMALL, jnp.asarray(shift))
    run = partial(linalg.eigsh, k=3, key=KEY, shift=shift, basis_size=size)
    found = run(diagonal(values), max_products=max_products)
    assert not found.converged
    assert all(np.all(np.isfinite(leaf)) for leaf in found)
    # What is reported is what it is.
    vectors, theta = np.asarray(found.vectors, np.float64), np.asarray(found.values, np.float64)
    residuals = np.linalg.norm(vectors * np.asarray(values) - theta[:, None] * vectors, axis=1)
    np.testing.assert_allclose(found.residuals, residuals, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("tolerance", "k"), [(1e-2, 3), (1e-4, 3), (1e-2, 8)])
def test_residuals_are_below_the_tolerance_and_not_for_nothing(tolerance, k, float64):
    values = jnp.asarray(bulk)
    run = partial(linalg.eigsh, k=k, key=KEY)
    found, exact = run(diagonal(values), tolerance=tolerance), run(diagonal(values))
    scale = np.max(np.abs(bulk))
    assert found.converged
    assert np.max(found.residuals) <= tolerance * scale
    assert np.max(found.residuals) >= 1e-4 * tolerance * scale
    assert int(found.products) < 0.8 * int(exact.products)
    np.testing.assert_allclose(found.values, wanted(bulk, k, "largest"), atol=tolerance * scale)


def test_copies_at_one_end_where_the_other_has_outliers(float64):
    # The next at the upper end comes early: it says nothing of the lower one.
    values = np.r_[100.0, 50.0, 10.0, 9.0, -1.0, -1.0, np.linspace(-0.99, 1.0, N - 6)]
    for sign, k, key in ((1, 4, 0), (1, 4, 1), (-1, 5, 2), (1, 1, 3)):
        found = linalg.eigsh(
            diagonal(jnp.asarray(sign * values)),
            *(k,),
            which="both",
            tolerance=1e-6,
            key=jax.random.key(key),
        )
        assert found.converged
        np.testing.assert_allclose(found.values, wanted(sign * values, k, "both"), atol=1e-3)


@pytest.mark.parametrize("k", [3, 6])
def test_there_are_k_unit_vectors_whatever_the_budget(k, float64):
    found = linalg.eigsh(diagonal(jnp.asarray(bulk)), k, max_products=2, key=KEY)
    assert not found.converged
    v, theta = np.asarray(found.vectors), np.asarray(found.values)
    np.testing.assert_allclose(v @ v.T, np.eye(k), atol=1e-12)
    residuals = np.linalg.norm(v * bulk - theta[:, None] * v, axis=1)
    np.testing.assert_allclose(found.residuals, residuals, atol=1e-12)


@pytest.mark.slow
def test_solving_ends_with_the_budget(float64):
    operator = diagonal(jnp.linspace(1.0, 1e4, N))
    found = linalg.eigsh(operator, 1, shift=5000.2, basis_size=SMALL, max_products=100, key=KEY)
    assert not found.converged
    assert found.products <= 120  # one round more of solutions that are given up after a step


@pytest.mark.slow
def test_tolerances_and_shifts_of_another_precision(float64):
    values = jnp.asarray(SPECTRA["outliers"], "float32")
    for options in ({"which": "largest"}, {"shift": jnp.asarray(8.1), "basis_size": SMALL}):
        found = linalg.eigsh(diagonal(values), 1, tolerance=np.float64(1e-4), key=KEY, **options)
        assert (found.values.dtype, bool(found.converged)) == (jnp.float32, True)


@pytest.mark.slow
def test_half_precision_has_coordinates_of_float32():
    values = jnp.asarray(SPECTRA["outliers"], "bfloat16")
    found = linalg.eigsh(diagonal(values), 2, tolerance=1e-2, key=KEY)
    assert (found.vectors.dtype, found.values.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(found.values, [10.0, 8.0], rtol=1e-2)


def test_the_size_of_the_map_is_that_of_all_it_was_seen_to_do(float64):
    values = jnp.linspace(0.0, 1.0, N)
    run = partial(restarted, k=2, which="smallest", basis_size=26)
    _, run = run(
        lambda v, _: (values * v, jnp.ones((), "int32")),
        jax.random.normal(KEY, (N,)),
        KEY,
        lambda theta, scale: 1e-3 * scale,
        500,
    )
    assert 0.99 <= run.scale <= 1 + 1e-12


def test_the_size_of_the_map_is_not_that_of_rows_that_do_not_exist_yet(float64):
    # At the first look there are 4 rows, fewer than what is wanted.
    values = jnp.asarray(1e-3 * bulk)
    _, run = jax.jit(
        partial(restarted, k=8, which="largest", basis_size=26), static_argnums=(0, 3)
    )(
        lambda v, _: (values * v, jnp.ones((), "int32")),
        jax.random.normal(KEY, (N,)),
        KEY,
        lambda theta, scale: 1e-3 * scale,
        500,
    )
    assert run.done
    assert 0.9 * np.max(np.abs(values)) <= run.scale <= np.max(np.abs(values)) * (1 + 1e-12)


@pytest.mark.parametrize("n", [20, N])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_does_not_converge(bad, n, dtype):
    values = jnp.asarray(bulk[:n], dtype).at[3].set(bad)
    for options in ({}, {"which": "both"}, {"shift": jnp.asarray(0.5, dtype), "basis_size": SMALL}):
        found = linalg.eigsh(diagonal(values), 3, key=KEY, **options)
        assert not found.converged


@pytest.mark.slow
def test_inside_jit_an_operator_that_is_not_symmetric_does_not_converge(float64):
    run = jax.jit(partial(linalg.eigsh, k=2, key=KEY))
    for n in (20, N):
        a = np.random.default_rng(0).normal(size=(n, n))
        assert not run(linalg.from_dense(a)).converged
        # What is asked for knows nothing of the rest, where the map is not symmetric.
        crooked = np.diag(np.r_[50.0, 40.0, np.zeros(n - 2)])
        crooked[2:, 2:] = a[2:, 2:]
        found = run(linalg.from_dense(crooked))
        assert n > 20 or np.max(found.residuals) <= 1e-11
        assert not found.converged
        right(run(linalg.from_dense(a + a.T)), a + a.T, np.linalg.eigvalsh(a + a.T)[:-3:-1], 1e-11)


@pytest.mark.slow
def test_many_operators_at_once(float64):
    dtype = float64
    spectra = jnp.asarray([SPECTRA[s] for s in ("outliers", "repeated", "2 I", "zero")], dtype)
    keys = jax.random.split(KEY, len(spectra))
    run = lambda A, key: linalg.eigsh(A, 3, which="both", key=key)
    found = jax.jit(jax.vmap(run))(jax.vmap(diagonal)(spectra), keys)
    for i, values in enumerate(np.asarray(spectra, np.float64)):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        right(one, values, wanted(values, 3, "both"), TOLERANCE[dtype.name])


def test_trees(float64):
    dtype = float64
    shapes = {"W": (10, 20), "b": [(N - 201,), ()], "none": (0, 2)}
    space = random_tree(0, shapes, dtype)
    a = np.random.default_rng(3).normal(size=(N, N))
    a = np.asarray(jnp.asarray(a + a.T, dtype), np.float64)
    A = linalg.from_dense(jnp.asarray(a, dtype), space, space, structure="symmetric")
    found = jax.jit(partial(linalg.eigsh, k=2, key=KEY))(A, start=space)
    assert jax.tree.map(jnp.shape, found.vectors) == jax.tree.map(lambda s: (2, *s.shape), space)
    rows = jax.vmap(linalg.coordinates(space).ravel)(found.vectors)
    exact = wanted(np.linalg.eigvalsh(a), 2, "largest")
    right(found._replace(vectors=rows), a, exact, TOLERANCE[dtype.name])


@pytest.mark.slow
def test_products_by_a_solver(float64):
    # The derivative of the solver at 0, where it stops at once, is 0.
    values = jnp.linspace(1.0, 5.0, N)
    inverse = lambda b: linalg.cg(lambda v: values * v, b, tolerance=1e-14).x
    A = linalg.LinearOperator(inverse, inverse, values, values, structure="symmetric")
    found = linalg.eigsh(A, 2, key=KEY, tolerance=1e-8)
    assert found.converged
    np.testing.assert_allclose(found.values, 1 / np.asarray(values)[:2], rtol=1e-10)


def test_the_top_of_a_hessian_is_that_of_scipy(float64):
    rng = np.random.default_rng(0)
    shapes = {"W1": (12, 40), "b1": (40,), "W2": (40, 24), "w3": (24,)}  # 1504 parameters
    params = jax.tree.map(lambda a: 0.4 * a, random_tree(1, shapes, "float64"))
    x, y = jnp.asarray(rng.normal(size=(60, 12))), jnp.asarray(rng.normal(size=60))

    def objective(p, x, y):
        h = jnp.tanh(jnp.tanh(x @ p["W1"] + p["b1"][None]) @ p["W2"])
        return jnp.mean((h @ p["w3"] - y) ** 2)

    H = linalg.hessian(objective, params, x, y, batch_size=25)
    product, space = jax.jit(lambda v: linalg.prepared(H)(v)), linalg.coordinates(H.domain)
    by_scipy = scipy.sparse.linalg.LinearOperator(
        H.shape, lambda v: flat(product(v.ravel())), dtype=np.float64
    )
    found = linalg.eigsh(H, 5, key=KEY)
    assert found.converged
    exact = np.sort(scipy.sparse.linalg.eigsh(by_scipy, 5, which="LA", tol=1e-12)[0])[::-1]
    np.testing.assert_allclose(found.values, exact, atol=1e-8 * np.max(np.abs(exact)))
    rows = jax.vmap(space.ravel)(found.vectors)
    images = np.stack([flat(product(v)) for v in rows])
    residuals = np.linalg.norm(images - exact[:, None] * np.asarray(rows), axis=1)
    np.testing.assert_allclose(found.residuals, residuals, atol=1e-10)


I5 = linalg.from_dense(jnp.eye(5), structure="symmetric")


@pytest.mark.parametrize(
    ("k", "options", "message"),
    [
        (0, {}, r"eigsh\(k\): got 0, expected an integer from 1 to the dimension 5"),
        (-1, {}, r"eigsh\(k\): got -1, expected an integer from 1 to the dimension 5"),
        (6, {}, r"eigsh\(k\): got 6, expected an integer from 1 to the dimension 5"),
        (1, {"which": "top"}, r"eigsh\(which\): got 'top', expected 'largest', 'smallest', 'both'"),
        (3, {"basis_size": 4}, r"eigsh\(basis_size\): got 4, expected at least k \+ 2 = 5"),
        (1, {"tolerance": 0.0}, r"eigsh\(tolerance\): got 0.0, expected a number in \(0, 1\)"),
        (1, {"tolerance": 1.0}, r"eigsh\(tolerance\): got 1.0, expected a number in \(0, 1\)"),
        (1, {"tolerance": -1.0}, r"eigsh\(tolerance\): got -1.0, expected a number in \(0, 1\)"),
    ],
)
def test_what_cannot_be_asked_for(k, options, message):
    with unchecked(), pytest.raises(ValueError, match=message):
        linalg.eigsh(I5, k, key=KEY, **options)

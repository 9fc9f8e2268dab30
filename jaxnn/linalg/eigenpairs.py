"""Some eigenvalues of a symmetric map, with their errors: Lanczos, restarted until it converges."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxnn import tree
from jaxnn.errors import invalid, require_between
from jaxnn.linalg.dense import storage
from jaxnn.linalg.eigenderivatives import differentiable
from jaxnn.linalg.krylov import Iterate
from jaxnn.linalg.minimal_residual import minimized
from jaxnn.linalg.operators import LinearOperator, member
from jaxnn.linalg.recurrence import shifted
from jaxnn.linalg.restarts import Which, rankings, restarted
from jaxnn.linalg.spaces import (
    prepared_constant,
    prepared_product,
    require_endomorphism,
    with_arrays,
)
from jaxnn.linalg.tridiagonal import (
    require_steps,
    require_symmetric,
    tridiagonal,
    tridiagonalized,
)
from jaxnn.linalg.vectors import coordinates
from jaxnn.types import Array, Key, PyTree

SURVEY = 12
"""Products to estimate the largest |λ|."""

MAX_INNER_STEPS = 10_000
"""Products for one system of a shift; one that is not solved by then leads to no convergence."""


class Eigenpairs(NamedTuple):
    """k eigenvalues λ with unit eigenvectors v, the most wanted first.

    values     λ, (k,)
    vectors    a tree like the operator's domain, with a leading axis of k
    residuals  ‖A v - λ v‖, (k,): an eigenvalue of A is at most so far from λ
    products   with A that it took; with a shift, of those that check a solution only one for each
    converged  whether each residual is at most tolerance · (largest |λ| seen), and a random vector
               orthogonal to the eigenvectors has no share in one that was missed
    """

    values: Float[Array, "k"]
    vectors: PyTree
    residuals: Float[Array, "k"]
    products: Int[Array, ""]
    converged: Bool[Array, ""]


def eigsh(
    operator: LinearOperator,
    k: int,
    *,
    key: Key,
    which: Which = "largest",
    shift: float | Array | None = None,
    start: PyTree | None = None,
    tolerance: float | Array | None = None,
    basis_size: int | None = None,
    max_products: int | Array | None = None,
) -> Eigenpairs:
    """k eigenpairs of a symmetric operator: A v = λ v, ‖v‖ = 1.

    which      "largest": λ descending; "smallest": ascending; "both": ⌈k/2⌉ largest and ⌊k/2⌋
               smallest, descending; "magnitude": |λ| descending
    shift      σ: instead, the k eigenvalues nearest to σ, nearest first, by Lanczos on (A - σI)⁻¹,
               whose products are solved for by MINRES; `which` is then not looked at. A σ that is
               an eigenvalue, to within ε/(10·tolerance) of the largest |λ| (5e-4 in float32, 6e-7
               in float64), is moved by that much, and so may be what is nearest
    start      a first vector near the wanted ones, such as an eigenvector of a nearby operator;
               without it a random one
    tolerance  of residuals, relative to the largest |λ| seen; by default ε^⅔ (2e-5 in float32,
               4e-11 in float64). The error of λ is about residual²/gap
    basis_size  vectors that are kept: memory is twice that many; by default max(2k + 10, 24)
    max_products  with A, after which the search ends unconverged, though not before it has k
               vectors; by default 5000, and a million with a shift, where every one of some 50
               steps solves a system

    Thick restarts keep the best half of the basis. One starting vector sees one vector of each
    eigenspace: after convergence a random vector, orthogonal to what was found, looks for more,
    until it has shown that it has no share in any (1e-4 of its mean share, so that a copy of an
    eigenvalue is overlooked in less than 1 of 100 searches). Small problems are solved densely
    (`storage` decides). Invariant subspaces, multiples of the identity and 0 are no special cases.

    Values and vectors have the derivatives of eigenpairs in forward and reverse mode, also with
    respect to the arrays that the operator closes over: ⟨v, Ȧv⟩, and for a vector one more linear
    system (`eigenderivatives`). Of eigenvalues that are equal to within the residual allowed the
    sum has a derivative, and so has the space of their vectors; single ones do not, and vectors of
    a multiple eigenvalue that is only in part among the k have the derivative NaN.

    Errors: a map between different spaces, or complex ones; a start that is not in it, k outside 1,
    ..., dimension, a basis smaller than k + 2, an unknown `which`, a tolerance outside (0, 1); an
    operator not declared symmetric that a probe shows not to be. Inside jit, where nothing can
    be raised, `converged` is then False, as it is where products are not finite.

    Source: Wu & Simon (2000), algorithm 3; Ericsson & Ruhe (1980) for the shift.

    >>> from jaxnn import linalg
    >>> A = linalg.from_dense(jnp.diag(jnp.arange(200.0)), structure="symmetric")
    >>> found = linalg.eigsh(A, 2, key=jax.random.key(0))
    >>> found.values.round(2), bool(found.converged)
    (Array([199., 198.], dtype=float32), True)
    >>> linalg.eigsh(A, 3, shift=50.4, key=jax.random.key(0)).values.round(2)
    Array([50., 51., 49.], dtype=float32)
    """
    flat = require_endomorphism("eigsh", operator)
    require_steps("eigsh(k)", k, flat.size)
    if which not in rankings:
        raise invalid(
            "eigsh(which)",
            got=repr(which),
            expected="'largest', 'smallest', 'both' or 'magnitude'",
            remedy="Eigenvalues in the interior are found by shift.",
        )
    size = max(2 * k + 10, 24) if basis_size is None else basis_size
    if size < k + 2:
        raise invalid(
            "eigsh(basis_size)",
            got=basis_size,
            expected=f"at least k + 2 = {k + 2}",
            remedy="2k + 10 is a good size.",
        )
    if tolerance is None:
        tolerance = float(jnp.finfo(flat.dtype).eps) ** (2 / 3)
    remedy = "It is relative to the largest |λ|."
    require_between("eigsh(tolerance)", tolerance, 0.0, 1.0, low_open=True, remedy=remedy)
    if start is not None:
        start = member("eigsh(start)", start, operator.domain)
    symmetric = require_symmetric("eigsh", operator)
    tolerance = jnp.asarray(tolerance, flat.dtype)
    shift = shift if shift is None else lax.stop_gradient(jnp.asarray(shift, flat.dtype))
    if max_products is None:
        max_products = 5000 if shift is None else 10**6
    max_products = jnp.asarray(max_products, jnp.int32)
    if storage(flat.size, products=size * (4 if shift is None else 40)) == "matrix":
        found = _dense(operator, shift, tolerance, k, which)
    else:
        first = jax.random.normal(key, (flat.size,), flat.dtype)
        first = first if start is None else lax.stop_gradient(flat.ravel(start))
        limits = tolerance, max_products
        if shift is None:
            found = _restarted(operator, first, key, limits, k, which, size)
        else:
            found = _inverted(operator, shift, first, key, limits, k, size)
    found = _measured(operator, found, shift is None and which == "both")
    return found._replace(converged=found.converged & symmetric)


class _Found(NamedTuple):
    """Unit vectors, the products that they took, whether none is missing, the residual allowed."""

    vectors: Float[Array, "k n"]
    products: Int[Array, ""]
    done: Bool[Array, ""]
    allowed: Float[Array, ""]


@jax.jit(static_argnums=(3, 4))
def _dense(operator: LinearOperator, shift: Any, tolerance: Any, k: int, which: Which) -> _Found:
    matrix = lax.stop_gradient(operator.to_dense())
    matrix = 0.5 * (matrix + matrix.T)
    theta, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    exists = jnp.ones(theta.size, bool)
    rank = rankings[which](theta, exists) if shift is None else jnp.abs(theta - shift)
    wanted = jnp.argsort(rank)[:k]
    products = jnp.array(theta.size, jnp.int32)
    allowed = tolerance * jnp.max(jnp.abs(theta))
    return _Found(vectors[:, wanted].T, products, jnp.array(True), allowed)


@jax.jit(static_argnums=(4, 5, 6))
def _restarted(
    operator: LinearOperator, first: Array, key: Key, limits: Any, k: int, which: Which, size: int
) -> _Found:
    product = prepared_constant(operator)
    counted = lambda v, _: (product(v), jnp.array(1, jnp.int32))
    tolerance, most = limits
    allowed = lambda theta, scale: tolerance * scale
    wanted, run = restarted(counted, first, key, allowed, most, k=k, which=which, basis_size=size)
    return _Found(wanted, run.products, run.done, tolerance * run.scale)


@jax.jit(static_argnums=(5, 6))
def _inverted(
    operator: LinearOperator, shift: Any, first: Array, key: Key, limits: Any, k: int, size: int
) -> _Found:
    product = prepared_constant(operator)
    tolerance, most = limits
    eps = jnp.finfo(first.dtype).eps
    # The noise of a product has to be below what the residuals are to reach.
    exact = jnp.maximum(0.1 * tolerance, 10 * eps)

    def solve(v: Array, shift: Array, spent: Array | int) -> Iterate:
        steps = jnp.clip(most - spent, 1, MAX_INNER_STEPS)
        return minimized(shifted(product, shift), v, None, exact, steps)

    survey_key, look_key, key = jax.random.split(key, 3)
    scale = _norm_of(product, first, survey_key)
    # MINRES leaves residuals of ε‖A‖‖x‖, so that the noise below σ + d is ε/d of the solution.
    distance = scale * jnp.maximum(0.1 * eps / tolerance, 0.5 * tolerance)
    near, spent = _is_near(solve, shift, distance, look_key, first)
    moved = jnp.where(near, shift + distance, shift)

    def inverse(v: Array, spent: Array) -> tuple[Array, Array]:
        found = solve(v, moved, spent)
        # Where A v is not finite, MINRES returns 0: that is no product, and none will be.
        return jnp.where(jnp.isfinite(scale), found.x, jnp.nan), found.steps + 1

    # A residual r of the inverse is one of (A - σI) r/θ for A, and ‖A - σI‖ ≤ ‖A‖ + |σ|.
    longest = scale + jnp.abs(moved)
    share = tolerance * scale / jnp.where(longest > 0, longest, 1)
    allowed = lambda theta, _: share * jnp.abs(theta)
    options: Any = {"k": k, "which": "magnitude", "basis_size": size, "products": spent}
    wanted, run = restarted(inverse, first, key, allowed, most, **options)
    return _Found(wanted, run.products, run.done, tolerance * scale)


def _norm_of(product: Callable[[Array], Array], like: Array, key: Key) -> Array:
    """The largest |λ|, nearly, by some steps from a random vector."""
    start = jax.random.normal(key, like.shape, like.dtype)
    _, alpha, beta, _ = tridiagonalized(product, start, SURVEY)
    return jnp.max(jnp.abs(jnp.linalg.eigvalsh(tridiagonal(alpha, beta[:-1]))))


def _is_near(
    solve: Callable[..., Iterate], shift: Array, distance: Array, key: Key, like: Array
) -> tuple[Bool[Array, ""], Int[Array, ""]]:
    """Whether an eigenvalue is within that distance of the shift, and the products up to then."""
    start = jax.random.normal(key, like.shape, like.dtype)
    once = solve(start, shift, SURVEY)
    spent = SURVEY + once.steps + 1
    size = tree.norm(once.x)
    twice = solve(once.x / jnp.where(size > 0, size, 1), shift, spent)
    # What is left of the start is its share in the null space of A - σI: 1/√n, give or take.
    singular = once.residual >= 0.05 / like.size**0.5
    return singular | ~(tree.norm(twice.x) * distance < 0.5), spent + twice.steps + 1


@jax.jit(static_argnums=2)
def _measured(operator: LinearOperator, found: _Found, descending: bool) -> Eigenpairs:
    """The Rayleigh quotients of the vectors and the residuals, by one more product for each."""
    flat = coordinates(operator.domain)
    # Every restart rounds the lengths; the error of a Rayleigh quotient is twice theirs.
    lengths = jax.vmap(tree.norm)(found.vectors)[:, None]
    vectors = found.vectors / jnp.where(lengths > 0, lengths, 1)
    product, arrays = with_arrays(operator)
    constants = lax.stop_gradient(arrays)
    images = lax.map(prepared_product(partial(product, constants), flat), vectors)
    values = jnp.sum(vectors * images, axis=1)
    if descending:
        order = jnp.argsort(-values)
        values, vectors, images = values[order], vectors[order], images[order]
    residuals = jnp.linalg.norm(images - values[:, None] * vectors, axis=1)
    converged = found.done & jnp.all(residuals <= found.allowed)
    products = found.products + len(vectors)
    values, vectors = differentiable(product, arrays, values, vectors, found.allowed)
    return Eigenpairs(values, jax.vmap(flat.unravel)(vectors), residuals, products, converged)

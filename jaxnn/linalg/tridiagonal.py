"""The Lanczos process: an orthonormal Krylov basis in which a symmetric map is tridiagonal."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxnn import tree
from jaxnn.errors import concrete, invalid
from jaxnn.linalg.operators import LinearOperator, member
from jaxnn.linalg.spaces import prepared, require_endomorphism
from jaxnn.linalg.vectors import Coordinates, coordinates, dot
from jaxnn.types import Array, Key, PyTree

DEPENDENT = 2**-0.5
"""A vector that keeps this share of its norm in a projection is orthogonal to rounding."""


class Tridiagonal(NamedTuple):
    """A Qᵀ = Qᵀ T + r eᵀ with orthonormal rows of Q and T symmetric and tridiagonal.

    basis        Q: a tree like the operator's domain with a leading axis of `steps` vectors
    diagonal     of T, (steps,)
    offdiagonal  of T beside it, (steps - 1,)
    residual     ‖r‖, what leads out of the span of the basis; 0 where it is invariant
    rank         vectors of the basis that are not 0: fewer than `steps` where an invariant subspace
                 was found before; what belongs to the others is 0
    """

    basis: PyTree
    diagonal: Float[Array, "steps"]
    offdiagonal: Float[Array, "steps-1"]
    residual: Float[Array, ""]
    rank: Int[Array, ""]

    @property
    def T(self) -> Float[Array, "steps steps"]:
        """The matrix T = Q A Qᵀ."""
        return tridiagonal(self.diagonal, self.offdiagonal)


def lanczos(operator: LinearOperator, start: PyTree, steps: int) -> Tridiagonal:
    """The Lanczos process of a symmetric operator, from `start`, with full orthogonalization.

        β_j q_{j+1} = A q_j - α_j q_j - β_{j-1} q_{j-1},   q_1 = start/‖start‖

    The basis spans start, A start, A² start, ...; it is orthonormal to rounding, as every vector is
    projected against all before it, and again where that took most of it away. Where nothing but
    rounding is left the subspace is invariant: the process ends there, with the rest set to 0.

    Errors: a map between different spaces, a start that is not in it, more steps than dimensions;
    an operator that is not declared symmetric and that a probe shows not to be.

    Source: Lanczos (1950); Daniel, Gragg, Kaufman & Stewart (1976) for projecting twice.

    >>> from jaxnn import linalg
    >>> A = linalg.from_dense(jnp.diag(jnp.array([1.0, 2.0, 2.0])), structure="symmetric")
    >>> found = linalg.lanczos(A, jnp.ones(3), 3)  # the start has a part in two eigenspaces alone
    >>> found.rank, found.diagonal.sum()
    (Array(2, dtype=int32), Array(3., dtype=float32))
    """
    flat = require_endomorphism("lanczos", operator)
    require_steps("lanczos(steps)", steps, flat.size)
    start = member("lanczos(start)", start, operator.domain)
    require_symmetric("lanczos", operator)
    return _lanczos(operator, flat.ravel(start), steps)


@jax.jit(static_argnums=2)
def _lanczos(operator: LinearOperator, start: Float[Array, "n"], steps: int) -> Tridiagonal:
    flat = coordinates(operator.domain)
    basis, alpha, beta, rank = tridiagonalized(prepared(operator), start, steps)
    vectors = jax.vmap(flat.unravel)(basis)
    return Tridiagonal(vectors, alpha, beta[:-1], beta[-1], rank)


def tridiagonalized(
    matvec: Any, start: Float[Array, "n"], steps: int
) -> tuple[Float[Array, "steps n"], Float[Array, "steps"], Float[Array, "steps"], Int[Array, ""]]:
    """The basis, α, β and rank of `lanczos` in coordinates, for a product that is a function."""

    def step(carry: tuple, j: Array) -> tuple:
        basis, scale, exists = carry
        w, alpha, _ = extended(matvec(basis[j]), basis, j)
        beta = tree.norm(w)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(alpha), beta))
        ends = beta <= negligible(scale)
        q = jnp.where(ends, 0, w / jnp.where(ends, 1, beta))
        # Last in the step: XLA would copy the whole basis if it were read after it is written.
        basis = basis.at[j + 1].set(q)
        return (basis, scale, exists & ~ends), (alpha, jnp.where(ends, 0, beta), exists)

    size = tree.norm(start)
    first = start / jnp.where(size > 0, size, 1)
    basis = jnp.zeros((steps + 1, start.size), start.dtype).at[0].set(first)
    begin = basis, jnp.zeros((), start.dtype), size > 0
    (basis, _, _), (alpha, beta, exists) = lax.scan(step, begin, jnp.arange(steps, dtype=jnp.int32))
    return basis[:steps], alpha, beta, jnp.sum(exists, dtype=jnp.int32)


def extended(
    w: Float[Array, "n"], basis: Float[Array, "m n"], j: Any
) -> tuple[Float[Array, "n"], Float[Array, ""], Float[Array, "m"]]:
    """What of w = A q_j leads out of the basis, α_j = ⟨q_j, w⟩, and all coefficients ⟨q_i, w⟩."""
    # The two that a tridiagonal T says are there, first: the rest is orthogonal but for rounding.
    local = jnp.zeros(len(basis), basis.dtype)
    for i in (j, jnp.maximum(j - 1, 0)):
        h = tree.dot(basis[i], w)
        w, local = w - h * basis[i], local.at[i].add(h)
    w, rest = orthogonalized(w, basis)
    coefficients = local + rest
    return w, coefficients[j], coefficients


def orthogonalized(
    w: Float[Array, "n"], basis: Float[Array, "m n"]
) -> tuple[Float[Array, "n"], Float[Array, "m"]]:
    """w without its part in the span of orthonormal rows (or rows of 0), and the coefficients.

    Once, and again where little was left: then what is left is rounding to a large part.
    """

    def project(w: Array) -> tuple[Array, Array]:
        h = dot(basis, w)
        return w - dot(h, basis), h

    once, h = project(w)
    little = tree.norm(once) < DEPENDENT * tree.norm(w)
    twice, correction = lax.cond(little, project, lambda w: (w, jnp.zeros_like(h)), once)
    return twice, h + correction


def negligible(scale: Float[Array, ""]) -> Float[Array, ""]:
    """The norm up to which a remainder of products of that size is rounding."""
    return 10 * jnp.finfo(scale.dtype).eps * scale


def tridiagonal(
    diagonal: Float[Array, "m"], offdiagonal: Float[Array, "m-1"]
) -> Float[Array, "m m"]:
    """The symmetric matrix T of these two.

    >>> tridiagonal(jnp.array([1.0, 2.0]), jnp.array([3.0]))
    Array([[1., 3.],
           [3., 2.]], dtype=float32)
    """
    return jnp.diag(diagonal) + jnp.diag(offdiagonal, 1) + jnp.diag(offdiagonal, -1)


def require_steps(argument: str, steps: int, size: int) -> None:
    """Raise unless 1 ≤ steps ≤ the dimension."""
    if not 1 <= steps <= size:
        raise invalid(
            argument,
            got=steps,
            expected=f"an integer from 1 to the dimension {size}",
            remedy="A basis has no more vectors than the space has dimensions.",
        )


def require_symmetric(function: str, operator: LinearOperator) -> Bool[Array, ""]:
    """Whether a map is symmetric: by declaration or a probe; raises where it is seen not to be.

    The probe is |⟨u, A v⟩ - ⟨A u, v⟩| ≤ 1000 ε (‖A v‖‖u‖ + ‖A u‖‖v‖) for two random vectors. Inside
    `jit` nothing can be raised, and the answer is for the caller to pass on.
    """
    if operator.symmetric:
        return jnp.array(True)
    remedy = "A.T @ A, A + A.T and Hessians are symmetric."
    return require_measured_symmetry(f"{function}(operator)", operator, remedy)


def require_measured_symmetry(
    argument: str, operator: LinearOperator, remedy: str
) -> Bool[Array, ""]:
    """Whether a probe shows a map to be symmetric; raises where it is seen not to be."""
    asymmetry = asymmetry_of(operator, jax.random.key(0))
    tolerance = 1000 * float(jnp.finfo(asymmetry.dtype).eps)
    measured = concrete(asymmetry)
    if measured is not None and measured > tolerance:
        raise invalid(
            argument,
            got=f"one with |⟨u, A v⟩ - ⟨A u, v⟩| = {measured:.2g} (‖A v‖‖u‖ + ‖A u‖‖v‖)",
            expected=f"a symmetric one: at most {tolerance:.1g} for random u and v",
            remedy=remedy,
        )
    return asymmetry <= tolerance


@jax.jit
def asymmetry_of(operator: LinearOperator, key: Key) -> Float[Array, ""]:
    """|⟨u, A v⟩ - ⟨A u, v⟩| / (‖A v‖‖u‖ + ‖A u‖‖v‖) for two normal vectors; 0 if A is symmetric."""
    flat: Coordinates = coordinates(operator.domain)
    u, v = jax.random.normal(key, (2, flat.size), flat.dtype)
    au, av = (flat.ravel(operator(flat.unravel(w))) for w in (u, v))
    size = tree.norm(av) * tree.norm(u) + tree.norm(au) * tree.norm(v)
    return jnp.abs(tree.dot(u, av) - tree.dot(au, v)) / jnp.where(size > 0, size, 1)

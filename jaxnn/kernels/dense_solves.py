"""Linear systems of symmetric kernels, definite or singular, with their derivatives."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int, Shaped

from jaxnn.errors import invalid
from jaxnn.kernels.matrices import as_columns, real_arrays, regularized, share, square
from jaxnn.kernels.modes import decomposed
from jaxnn.kernels.spectral import PSEUDO_INVERSE, applied
from jaxnn.linalg.vectors import dot
from jaxnn.types import Array, ArrayLike


class Solution(NamedTuple):
    """x of least norm among those of least ‖Kx - b‖, the rank of K, and ‖Kx - b‖/‖b‖."""

    x: Float[Array, "n ..."]
    rank: Int[Array, ""]
    residual: Float[Array, ""]


def solve(
    kernel: Shaped[Array, "n n"],
    b: Shaped[Array, "n ..."],
    *,
    noise: ArrayLike = 0.0,
    diag_reg: ArrayLike = 0.0,
) -> Solution:
    """x with (K + noise·I) x = b, of least norm where that is singular.

    By Cholesky's factors if K + noise·I is positive definite beyond rounding, else by eigenmodes.
    `noise` may be one number or one per row; `diag_reg` adds that multiple of the mean diagonal of
    K, as in neural-tangents. Derivatives are those of the solution, of a singular K those at a
    constant rank, d(K⁺) of Golub & Pereyra. Integers are converted, and numbers of half precision
    are computed with in float32. A negative traced noise gives NaN.

    Errors: a kernel that is not square, a b of another length, a negative noise, complex numbers.

    Source: Golub & Pereyra (1973), theorem 4.3.

    >>> solve(jnp.ones((2, 2)), jnp.array([1.0, 1.0])).x.round(4)
    Array([0.5, 0.5], dtype=float32)
    """
    (kernel, b), dtype = real_arrays("solve", kernel=kernel, b=b)
    matrix = square("solve", kernel)
    if b.ndim == 0 or b.shape[0] != len(matrix):
        raise invalid(
            "solve(b)",
            got=f"shape {b.shape}",
            expected=f"({len(matrix)}, ...), a row for every row of the kernel",
            remedy="Flatten the outputs as a kernel (N, N, O, O) is flattened, to (N·O, ...).",
        )
    found = solved(regularized("solve", matrix, noise, diag_reg), as_columns(b))
    return Solution(found.x.reshape(b.shape).astype(dtype), found.rank, found.residual)


def solved(matrix: Float[Array, "n n"], columns: Float[Array, "n c"]) -> Solution:
    """The solution for a symmetric matrix and columns of its dtype.

    >>> solved(4.0 * jnp.eye(2), jnp.ones((2, 1))).x[:, 0]
    Array([0.25, 0.25], dtype=float32)
    """
    factor, definite = factorized(lax.stop_gradient(matrix))

    def substituted(_, right: Array) -> Array:
        half = lax.linalg.triangular_solve(factor, right, left_side=True, lower=True)
        return lax.linalg.triangular_solve(
            factor, half, left_side=True, lower=True, transpose_a=True
        )

    def by_factors() -> tuple[Array, Array]:
        x = lax.custom_linear_solve(lambda v: dot(matrix, v), columns, substituted, symmetric=True)
        return x, jnp.asarray(len(matrix))

    def by_modes() -> tuple[Array, Array]:
        modes = decomposed(matrix)
        return applied(PSEUDO_INVERSE, matrix, modes, (), columns)[0], modes.rank

    x, rank = lax.cond(definite, by_factors, by_modes)
    return Solution(x, rank, share(dot(matrix, x) - columns, columns))


def factorized(
    matrix: Float[Array, "n n"],
) -> tuple[Float[Array, "n n"], Bool[Array, ""]]:
    """The Cholesky factor and whether the matrix is definite beyond rounding; else the factor I.

    >>> bool(factorized(jnp.ones((2, 2)))[1]), bool(factorized(jnp.ones((2, 2)) + jnp.eye(2))[1])
    (False, True)
    """
    n = len(matrix)
    if n == 0:
        return matrix, jnp.asarray(True)
    factor = jnp.linalg.cholesky(matrix)
    # NaN pivots are not definite.
    least = n * jnp.finfo(matrix.dtype).eps * jnp.max(jnp.diagonal(matrix))
    definite = jnp.min(jnp.diagonal(factor) ** 2) > least
    # Not NaN: 0·NaN would reach the derivative of the branch that is taken.
    return jnp.where(definite, factor, jnp.eye(n, dtype=matrix.dtype)), definite

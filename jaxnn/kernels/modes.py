"""Symmetric kernels taken apart: eigenmodes, rank, and linear systems that may be singular."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxnn.errors import invalid, require_between
from jaxnn.types import Array, ArrayLike


class Modes(NamedTuple):
    """K = Σ_i λ_i u_i u_iᵀ: eigenvalues (n,) from the largest down, eigenvectors (n, n) in columns.

    Eigenvalues that rounding made negative are 0. `rank` counts those above the tolerance.
    """

    eigenvalues: Float[Array, "n"]
    eigenvectors: Float[Array, "n n"]
    rank: Int[Array, ""]

    def inverses(self) -> Float[Array, "n"]:
        """1/λ_i, and 0 beyond the rank: the eigenvalues of the pseudo-inverse."""
        within = jnp.arange(len(self.eigenvalues)) < self.rank
        return jnp.where(within, 1.0 / jnp.where(within, self.eigenvalues, 1.0), 0.0)


class Solution(NamedTuple):
    """x of least norm among those of least ‖Kx - b‖, the rank of K, and ‖Kx - b‖/‖b‖."""

    x: Float[Array, "n ..."]
    rank: Int[Array, ""]
    residual: Float[Array, ""]


def eigenmodes(kernel: Float[Array, "N N ..."], *, tolerance: float | None = None) -> Modes:
    """The eigenmodes of a positive semidefinite kernel, (N, N) or (N, N, O, O).

    Of the latter they are those of the (N·O, N·O) matrix. An eigenvalue counts to the rank if it is
    more than `tolerance` times the largest: n·ε unless given, what rounding leaves.

    Errors: a kernel that is not square, a negative tolerance.

    >>> modes = eigenmodes(jnp.ones((3, 3)))
    >>> print(f"{modes.eigenvalues[0]:.4f} {modes.rank}")
    3.0000 1
    """
    k = as_matrix(kernel)
    n = len(k)
    if tolerance is not None:
        remedy = "It is relative to the largest eigenvalue."
        require_between("eigenmodes(tolerance)", tolerance, 0.0, 1.0, remedy=remedy)
    share = n * jnp.finfo(k.dtype).eps if tolerance is None else tolerance
    values, vectors = jnp.linalg.eigh(k)
    values = jnp.maximum(values[::-1], 0.0)
    rank = jnp.sum(values > share * values[0])
    return Modes(values, vectors[:, ::-1], rank)


def max_learning_rate(
    kernel: Float[Array, "N N ..."], *, momentum: ArrayLike = 0.0
) -> Float[Array, ""]:
    """The learning rate below which gradient descent on ½ Σ‖f - y‖² is stable, 2(1 + μ)/λ_max.

    On the mean over N examples it is N times as large. `momentum` is μ of the heavy ball.

    Source: Polyak (1964), theorem 9; Lee et al. (2019), section 2.3.

    >>> float(max_learning_rate(jnp.diag(jnp.array([1.0, 4.0]))))
    0.5
    """
    return 2.0 * (1.0 + jnp.asarray(momentum)) / jnp.linalg.eigvalsh(as_matrix(kernel))[-1]


def solve(
    kernel: Float[Array, "n n"], b: Float[Array, "n ..."], *, noise: ArrayLike = 0.0
) -> Solution:
    """x with (K + noise·I) x = b, of least norm where that is singular.

    By Cholesky's factors if K + noise·I is positive definite beyond rounding, else by eigenmodes.

    Errors: a kernel that is not square, a b of another length.

    >>> solve(jnp.ones((2, 2)), jnp.array([1.0, 1.0])).x.round(4)
    Array([0.5, 0.5], dtype=float32)
    """
    k = as_matrix(kernel)
    if b.shape[0] != len(k):
        raise invalid(
            "solve(b)",
            got=f"shape {b.shape}",
            expected=f"({len(k)}, ...), a row for every row of the kernel",
            remedy="Flatten outputs as as_matrix flattens a kernel (N, N, O, O).",
        )
    n, columns = len(k), b.reshape(len(k), -1)
    a, factor, definite = factorized(k, noise)

    def by_factors() -> tuple[Array, Array]:
        half = lax.linalg.triangular_solve(factor, columns, left_side=True, lower=True)
        x = lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)
        return x, jnp.asarray(n)

    def by_modes() -> tuple[Array, Array]:
        modes = eigenmodes(a)
        u = modes.eigenvectors
        return u @ (modes.inverses()[:, None] * (u.T @ columns)), modes.rank

    x, rank = lax.cond(definite, by_factors, by_modes)
    size = jnp.linalg.norm(columns)
    residual = jnp.linalg.norm(a @ x - columns) / jnp.where(size > 0, size, 1.0)
    return Solution(x.reshape(b.shape), rank, residual)


def factorized(
    kernel: Float[Array, "n n"], noise: ArrayLike
) -> tuple[Float[Array, "n n"], Float[Array, "n n"], Bool[Array, ""]]:
    """A = K + noise·I, its Cholesky factor, and whether A is definite beyond rounding.

    >>> bool(factorized(jnp.ones((2, 2)), 0.0)[2]), bool(factorized(jnp.ones((2, 2)), 0.1)[2])
    (False, True)
    """
    n, dtype = len(kernel), kernel.dtype
    a = kernel + jnp.asarray(noise, dtype) * jnp.eye(n, dtype=dtype)
    factor = jnp.linalg.cholesky(a)
    # NaN pivots are not definite.
    definite = jnp.min(jnp.diagonal(factor) ** 2) > n * jnp.finfo(dtype).eps * jnp.max(
        jnp.diagonal(a)
    )
    return a, factor, definite


def as_matrix(kernel: Float[Array, "N M ..."]) -> Float[Array, "n m"]:
    """A kernel (N, M) itself, or one (N, M, O, O) as (N·O, M·O), outputs of an example together.

    Errors: other ranks.

    >>> as_matrix(jnp.ones((4, 3, 2, 2))).shape
    (8, 6)
    """
    if kernel.ndim == 2:
        return kernel
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        raise invalid(
            "kernel",
            got=f"shape {kernel.shape}",
            expected="(N, M) or (N, M, O, O)",
            remedy="Use kernels.ntk with outputs='mean' or 'full', or kernels.infinite.",
        )
    n, m, o, _ = kernel.shape
    return jnp.transpose(kernel, (0, 2, 1, 3)).reshape(n * o, m * o)

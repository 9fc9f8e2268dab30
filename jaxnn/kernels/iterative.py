"""Kernel systems too large for a factorization: conjugate gradients, and what speeds them up."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jaxnn import linalg
from jaxnn.errors import invalid, require_between
from jaxnn.kernels.tiles import starts
from jaxnn.linalg.krylov import Iterate
from jaxnn.types import Array

Pairs = Callable[[Array, Array], Float[Array, "A B"]]
"""(x1, x2) ↦ their kernel: `lambda a, b: kernels.infinite(net, a, b).ntk`."""


def solve_iteratively(
    kernel: Pairs,
    x: Float[Array, "N ..."],
    b: Float[Array, "N ..."],
    *,
    noise: float,
    rank: int = 100,
    batch_size: int = 1000,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
) -> Iterate:
    """α with (K + noise·I) α = b, where K is never stored: N² entries anew in every step.

    `kernel` gives K between two batches of inputs; a product takes `batch_size` rows at once. The
    preconditioner is LLᵀ + noise·I with L the `rank` columns of `pivoted_cholesky`.

    Errors: a noise that is not positive, a b of another length.

    Source: Gardner et al. (2018), section 4.

    >>> x = jnp.linspace(0.0, 1.0, 50)[:, None]
    >>> rbf = lambda a, b: jnp.exp(-((a - b.T) ** 2))
    >>> bool(solve_iteratively(rbf, x, jnp.sin(x[:, 0]), noise=0.1, rank=5).converged)
    True
    """
    remedy = "Give targets a variance; kernels.solve takes singular kernels."
    require_between(
        "solve_iteratively(noise)", noise, 0.0, float("inf"), low_open=True, remedy=remedy
    )
    n = len(x)
    if b.shape[0] != n:
        raise invalid(
            "solve_iteratively(b)",
            got=f"shape {b.shape}",
            expected=f"({n}, ...), a row for every input",
            remedy="b holds the targets of x.",
        )

    size = min(batch_size, n)
    rows = jnp.asarray(starts(n, size)[:, None] + np.arange(size)[None, :])

    def product(v: Array) -> Array:
        blocks = lax.map(lambda r: kernel(x[r], x) @ v, rows)
        return jnp.zeros_like(v).at[rows].set(blocks) + noise * v

    one = lambda i: kernel(x, lax.dynamic_slice_in_dim(x, i, 1))[:, 0]
    diagonal = lax.map(lambda a: kernel(a[None], a[None])[0, 0], x, batch_size=size)
    factor = pivoted_cholesky(one, diagonal, min(rank, n))
    # Woodbury: (LLᵀ + noise·I)⁻¹ = (I - L(LᵀL + noise·I)⁻¹Lᵀ)/noise.
    inner = factor.T @ factor + noise * jnp.eye(factor.shape[1], dtype=factor.dtype)
    half = jnp.linalg.cholesky(inner)

    def preconditioner(r: Array) -> Array:
        columns = (factor.T @ r).reshape(factor.shape[1], -1)
        inverse = jax.scipy.linalg.cho_solve((half, True), columns)
        return (r - (factor @ inverse).reshape(r.shape)) / noise

    return linalg.cg(
        product, b, preconditioner=preconditioner, tolerance=tolerance, max_steps=max_steps
    )


def pivoted_cholesky(
    column: Callable[[Array], Float[Array, "N"]], diagonal: Float[Array, "N"], rank: int
) -> Float[Array, "N R"]:
    """L with K ≈ LLᵀ from `rank` columns of K, the next always where most of the diagonal is left.

    `column`(i) is that of K. What is left is positive semidefinite; columns beyond the numerical
    rank are 0.

    Source: Harbrecht, Peters & Schneider (2012), algorithm 1.

    >>> k = jnp.ones((3, 3))
    >>> pivoted_cholesky(lambda i: k[:, i], jnp.diagonal(k), 2)
    Array([[1., 0.],
           [1., 0.],
           [1., 0.]], dtype=float32)
    """
    floor = 10 * jnp.finfo(diagonal.dtype).eps * jnp.max(diagonal)

    def step(m: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, left = state
        pivot = jnp.argmax(left)
        size = left[pivot]
        new = column(pivot) - factor @ factor[pivot]
        new = jnp.where(size > floor, new / jnp.sqrt(jnp.maximum(size, floor)), 0.0)
        left = jnp.maximum(left - new**2, 0.0).at[pivot].set(0.0)
        return factor.at[:, m].set(new), left

    start = jnp.zeros((len(diagonal), rank), diagonal.dtype), diagonal
    return lax.fori_loop(0, rank, step, start)[0]

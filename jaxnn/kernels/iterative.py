"""Kernel systems too large for a factorization: preconditioned conjugate gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Shaped

from jaxnn import linalg
from jaxnn.errors import concrete, invalid, require_between
from jaxnn.kernels.matrices import as_columns, real_arrays
from jaxnn.kernels.tiles import starts
from jaxnn.linalg.krylov import Iterate
from jaxnn.linalg.vectors import dot
from jaxnn.precision import inexact
from jaxnn.types import Array, ArrayLike

Pairs = Callable[[Array, Array], Float[Array, "A B"]]
"""(x1, x2) ↦ their kernel: `lambda a, b: kernels.infinite(net, a, b).ntk`."""


def solve_iteratively(
    kernel: Pairs,
    x: Shaped[Array, "N ..."],
    b: Shaped[Array, "N ..."],
    *,
    noise: ArrayLike = 0.0,
    diag_reg: ArrayLike = 0.0,
    rank: int = 100,
    batch_size: int = 1000,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
) -> Iterate:
    """α with (K + noise·I) α = b, where K is never stored: each step computes its N² entries.

    `kernel` gives K between two batches of inputs; a product takes `batch_size` rows at once. The
    preconditioner is LLᵀ + noise·I with L the `rank` columns of `pivoted_cholesky`. `diag_reg` adds
    that multiple of the mean diagonal of K to the noise, as in neural-tangents. Kernels of half
    precision are summed in float32. α has the derivatives of the exact solution, in reverse mode
    too: each is one more system. A negative traced noise gives NaN.

    Errors: noise and diag_reg that are negative or both 0, a b of another length, a rank or
    batch_size below 1, complex b.

    Source: Gardner et al. (2018), section 4.

    >>> x = jnp.linspace(0.0, 1.0, 50)[:, None]
    >>> rbf = lambda a, b: jnp.exp(-((a - b.T) ** 2))
    >>> bool(solve_iteratively(rbf, x, jnp.sin(x[:, 0]), noise=0.1, rank=5).converged)
    True
    """
    _require_sizes(noise, diag_reg, rank, batch_size)
    n = len(x)
    if jnp.ndim(b) == 0 or len(b) != n:
        raise invalid(
            "solve_iteratively(b)",
            got=f"shape {jnp.shape(b)}",
            expected=f"({n}, ...), a row for every input",
            remedy="b holds the targets of x.",
        )
    entry = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    entries = jnp.zeros((), jax.eval_shape(kernel, entry, entry).dtype)
    (b,), dtype = real_arrays("solve_iteratively", b=inexact(b, entries))
    if n == 0:
        return Iterate(b.astype(dtype), jnp.zeros(()), jnp.zeros((), int), jnp.asarray(True))
    pairs = lambda x1, x2: kernel(x1, x2).astype(b.dtype)

    size = min(batch_size, n)
    rows = jnp.asarray(starts(n, size)[:, None] + np.arange(size)[None, :])
    one = lambda i: pairs(x, lax.dynamic_slice_in_dim(x, i, 1))[:, 0]
    diagonal = lax.map(lambda a: pairs(a[None], a[None])[0, 0], x, batch_size=size)
    added = jnp.asarray(noise, b.dtype) + jnp.asarray(diag_reg, b.dtype) * jnp.mean(diagonal)
    ridge = jnp.where((jnp.asarray(noise) >= 0) & (jnp.asarray(diag_reg) >= 0), added, jnp.nan)

    def product(v: Array) -> Array:
        blocks = lax.map(lambda r: dot(pairs(x[r], x), v), rows)
        return jnp.zeros_like(v).at[rows].set(blocks) + ridge * v

    factor = pivoted_cholesky(one, diagonal, min(rank, n))
    # Woodbury: (LLᵀ + noise·I)⁻¹ = (I - L(LᵀL + noise·I)⁻¹Lᵀ)/noise.
    inner = dot(factor.T, factor) + ridge * jnp.eye(factor.shape[1], dtype=factor.dtype)
    half = jnp.linalg.cholesky(inner)

    def preconditioner(r: Array) -> Array:
        columns = dot(factor.T, as_columns(r))
        inverse = jax.scipy.linalg.cho_solve((half, True), columns)
        return (r - dot(factor, inverse).reshape(r.shape)) / ridge

    found = linalg.cg(
        product, b, preconditioner=preconditioner, tolerance=tolerance, max_steps=max_steps
    )
    return found._replace(x=found.x.astype(dtype))


def pivoted_cholesky(
    column: Callable[[Array], Shaped[Array, "N"]], diagonal: Shaped[Array, "N"], rank: int
) -> Float[Array, "N R"]:
    """L with K ≈ LLᵀ from `rank` columns of K: each takes the largest entry of the diagonal left.

    `column`(i) is that of K. The difference K - LLᵀ is positive semidefinite; columns beyond the
    numerical rank are 0.

    Errors: a rank below 1, complex kernels.

    Source: Harbrecht, Peters & Schneider (2012), algorithm 1.

    >>> k = jnp.ones((3, 3))
    >>> pivoted_cholesky(lambda i: k[:, i], jnp.diagonal(k), 2)
    Array([[1., 0.],
           [1., 0.],
           [1., 0.]], dtype=float32)
    """
    _require_count("pivoted_cholesky(rank)", rank)
    (diagonal,), dtype = real_arrays("pivoted_cholesky", diagonal=diagonal)
    floor = 10 * jnp.finfo(diagonal.dtype).eps * jnp.max(diagonal)

    def step(m: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, left = state
        pivot = jnp.argmax(left)
        size = left[pivot]
        new = column(pivot).astype(left.dtype) - dot(factor, factor[pivot])
        new = jnp.where(size > floor, new / jnp.sqrt(jnp.maximum(size, floor)), 0.0)
        left = jnp.maximum(left - new**2, 0.0).at[pivot].set(0.0)
        return factor.at[:, m].set(new), left

    start = jnp.zeros((len(diagonal), rank), diagonal.dtype), diagonal
    return lax.fori_loop(0, rank, step, start)[0].astype(dtype)


def _require_sizes(noise: ArrayLike, diag_reg: ArrayLike, rank: int, batch_size: int) -> None:
    remedy = "Give targets a variance; kernels.solve takes singular kernels."
    both = (concrete(noise), concrete(diag_reg))
    for name, value, low_open in (
        ("noise", noise, both[1] == 0),
        ("diag_reg", diag_reg, False),
    ):
        argument = f"solve_iteratively({name})"
        if jnp.shape(value) != ():
            got = f"shape {jnp.shape(value)}"
            raise invalid(argument, got=got, expected="a number, shape ()", remedy=remedy)
        require_between(argument, value, 0.0, float("inf"), low_open=low_open, remedy=remedy)
    _require_count("solve_iteratively(rank)", rank)
    _require_count("solve_iteratively(batch_size)", batch_size)


def _require_count(argument: str, count: int) -> None:
    if concrete(count) is None or count < 1:
        remedy = "It is a number of columns or rows."
        raise invalid(argument, got=count, expected="an integer ≥ 1", remedy=remedy)

"""Symmetric kernels as matrices: their form, their ridge, their eigenmodes and rank."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int, Shaped

from jaxnn.errors import concrete, invalid, is_traced, require_between
from jaxnn.precision import inexact_dtype, wide_dtype
from jaxnn.types import Array, ArrayLike


class Modes(NamedTuple):
    """K = Σ_i λ_i u_i u_iᵀ: eigenvalues (n,) from the largest down, eigenvectors (n, n) in columns.

    Eigenvalues that rounding made negative are 0. `rank` counts those above the tolerance.
    """

    eigenvalues: Float[Array, "n"]
    eigenvectors: Float[Array, "n n"]
    rank: Int[Array, ""]

    def inverses(self) -> Float[Array, "n"]:
        """1/λ_i, and 0 beyond the rank: the eigenvalues of the pseudo-inverse; NaN for NaN."""
        within = jnp.arange(len(self.eigenvalues)) < self.rank
        beyond = jnp.where(jnp.isnan(self.eigenvalues), self.eigenvalues, 0.0)
        return jnp.where(within, 1.0 / jnp.where(within, self.eigenvalues, 1.0), beyond)


def eigenmodes(kernel: Shaped[Array, "N N ..."], *, tolerance: float | None = None) -> Modes:
    """The eigenmodes of a positive semidefinite kernel, (N, N) or (N, N, O, O).

    Of the latter they are those of the (N·O, N·O) matrix. An eigenvalue counts to the rank if it is
    more than `tolerance` times the largest (default: n·ε, the size of rounding errors). Kernels of
    half precision are decomposed in float32. Eigenvectors of equal eigenvalues have no derivative,
    and theirs is NaN; `solve` and `gradient_flow` have one.

    Errors: a kernel that is not square or not real, a negative tolerance.

    >>> modes = eigenmodes(jnp.ones((3, 3)))
    >>> print(f"{modes.eigenvalues[0]:.4f} {modes.rank}")
    3.0000 1
    """
    if tolerance is not None:
        remedy = "It is relative to the largest eigenvalue."
        require_between("eigenmodes(tolerance)", tolerance, 0.0, 1.0, remedy=remedy)
    (kernel,), dtype = real_arrays("eigenmodes", kernel=kernel)
    modes = decomposed(square("eigenmodes", kernel), tolerance)
    vectors = modes.eigenvectors.astype(dtype)
    return Modes(modes.eigenvalues.astype(dtype), vectors, modes.rank)


def decomposed(matrix: Float[Array, "n n"], tolerance: float | None = None) -> Modes:
    """The eigenmodes of a positive semidefinite matrix, as `eigenmodes` without its checks.

    >>> decomposed(2.0 * jnp.eye(2)).eigenvalues
    Array([2., 2.], dtype=float32)
    """
    n = len(matrix)
    if n == 0:
        return Modes(jnp.zeros(0, matrix.dtype), matrix, jnp.zeros((), int))
    share = n * jnp.finfo(matrix.dtype).eps if tolerance is None else tolerance
    values, vectors = jnp.linalg.eigh(matrix)
    # LAPACK may miss a NaN, and an eigenvalue that is NaN would count as one of 0.
    values = jnp.where(jnp.all(jnp.isfinite(matrix)), values[::-1], jnp.nan)
    # The kernel is semidefinite: the clip undoes rounding and does not change the derivative.
    values = values + lax.stop_gradient(jnp.maximum(values, 0.0) - values)
    return Modes(values, vectors[:, ::-1], jnp.sum(values > share * values[0]))


def max_learning_rate(
    kernel: Shaped[Array, "N N ..."], *, momentum: ArrayLike = 0.0
) -> Float[Array, ""]:
    """The learning rate below which gradient descent on ½ Σ‖f - y‖² is stable, 2(1 + μ)/λ_max.

    On the mean over N examples it is N times as large. `momentum` is μ of the heavy ball.

    Errors: a kernel that is not square or not real, a momentum outside [0, 1).

    Source: Polyak (1964), theorem 9; Lee et al. (2019), section 2.3.

    >>> float(max_learning_rate(jnp.diag(jnp.array([1.0, 4.0]))))
    0.5
    """
    remedy = "It is the share of a step that the next one keeps."
    require_between("max_learning_rate(momentum)", momentum, 0.0, 1.0, remedy=remedy)
    (kernel,), dtype = real_arrays("max_learning_rate", kernel=kernel)
    largest = jnp.linalg.eigvalsh(square("max_learning_rate", kernel))[-1]
    return (2.0 * (1.0 + jnp.asarray(momentum, largest.dtype)) / largest).astype(dtype)


def real_arrays(caller: str, **arrays: ArrayLike | None) -> tuple[tuple[Any, ...], jnp.dtype]:
    """The arrays in one dtype of at least float32, and the dtype that results are cast to.

    Integers and booleans become floating-point numbers; None stays None.

    Errors: complex arrays.

    >>> (kernel, y), dtype = real_arrays("solve", kernel=jnp.eye(1, dtype="bfloat16"), y=[1])
    >>> kernel.dtype, y, dtype
    (dtype('float32'), Array([1.], dtype=float32), dtype(bfloat16))
    """
    given = {name: jnp.asarray(a) for name, a in arrays.items() if a is not None}
    for name, a in given.items():
        if jnp.iscomplexobj(a):
            raise invalid(
                f"{caller}({name})",
                got=f"dtype {a.dtype}",
                expected="real numbers",
                remedy="Pass real and imaginary parts as two outputs.",
            )
    wide = wide_dtype(*given.values())
    values = (given[name].astype(wide) if name in given else None for name in arrays)
    return tuple(values), inexact_dtype(*given.values())


def square(caller: str, kernel: Float[Array, "N N ..."]) -> Float[Array, "n n"]:
    """A kernel of a batch with itself as a symmetric matrix; rounding may have made it less so.

    >>> square("solve", jnp.array([[1.0, 2.0], [0.0, 1.0]]))
    Array([[1., 1.],
           [1., 1.]], dtype=float32)
    """
    if kernel.ndim not in (2, 4) or kernel.shape[0] != kernel.shape[1]:
        raise invalid(
            f"{caller}(kernel)",
            got=f"shape {kernel.shape}",
            expected="(N, N) or (N, N, O, O)",
            remedy="It is the kernel of a batch with itself, kernels.ntk(f, params, x).",
        )
    matrix = as_matrix(kernel)
    return 0.5 * (matrix + matrix.T)


def regularized(
    caller: str, matrix: Float[Array, "n n"], noise: ArrayLike, diag_reg: ArrayLike
) -> Float[Array, "n n"]:
    """K + (noise + diag_reg · mean of the diagonal of K)·I; `noise` may be one number per row.

    Errors: negative or infinite numbers, other shapes. Where they are traced the matrix is NaN.

    >>> regularized("solve", jnp.diag(jnp.array([1.0, 3.0])), 0.5, 0.1)
    Array([[1.7, 0. ],
           [0. , 3.7]], dtype=float32)
    """
    n = len(matrix)
    total = jnp.zeros(n, matrix.dtype)
    unit = jnp.mean(jnp.diagonal(matrix)) if n else jnp.ones((), matrix.dtype)
    for name, value, shapes, scale in (
        ("noise", noise, ((), (n,)), jnp.ones_like(unit)),
        ("diag_reg", diag_reg, ((),), unit),
    ):
        if not is_traced(value) and not _within(value):
            raise invalid(
                f"{caller}({name})",
                got=concrete(value) if concrete(value) is not None else "negative numbers or NaN",
                expected="a number in [0, inf)",
                remedy="It is added to the diagonal of the kernel, as a variance.",
            )
        if jnp.shape(value) not in shapes:
            raise invalid(
                f"{caller}({name})",
                got=f"shape {jnp.shape(value)}",
                expected=" or ".join(map(str, shapes)),
                remedy="Use jax.vmap for several values.",
            )
        added = jnp.asarray(value, matrix.dtype)
        total = total + jnp.where(added >= 0, added, jnp.nan) * scale
    return matrix + jnp.diag(total)


def _within(value: ArrayLike) -> bool:
    numbers = np.asarray(value, np.float64)
    return bool(np.all((numbers >= 0) & (numbers < np.inf)))


def as_matrix(kernel: Shaped[Array, "N M ..."]) -> Shaped[Array, "n m"]:
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

"""Symmetric kernels taken apart: eigenmodes, their rank and their derivatives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int, Shaped

from jaxnn.errors import require_between
from jaxnn.kernels.matrices import real_arrays, square
from jaxnn.linalg.vectors import dot
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
    matrix = square("eigenmodes", kernel)
    modes = reopened(matrix, decomposed(matrix, tolerance))
    vectors = modes.eigenvectors.astype(dtype)
    return Modes(modes.eigenvalues.astype(dtype), vectors, modes.rank)


def decomposed(matrix: Float[Array, "n n"], tolerance: float | None = None) -> Modes:
    """The eigenmodes of a positive semidefinite matrix, without a derivative: see `reopened`.

    >>> decomposed(2.0 * jnp.eye(2)).eigenvalues
    Array([2., 2.], dtype=float32)
    """
    matrix = lax.stop_gradient(matrix)
    n = len(matrix)
    if n == 0:
        return Modes(jnp.zeros(0, matrix.dtype), matrix, jnp.zeros((), int))
    share = n * jnp.finfo(matrix.dtype).eps if tolerance is None else tolerance
    values, vectors = jnp.linalg.eigh(matrix)
    # LAPACK may miss a NaN, and an eigenvalue that is NaN would count as one of 0.
    finite = jnp.all(jnp.isfinite(matrix))
    values = jnp.where(finite, jnp.maximum(values[::-1], 0.0), jnp.nan)
    return Modes(values, vectors[:, ::-1], jnp.sum(values > share * values[0]))


def reopened(matrix: Float[Array, "n n"], modes: Modes) -> Modes:
    """The modes of a matrix with their derivatives in it, of any order.

    Eigenvalues have dλ = uᵀ dK u, at 0 too, where only rounding was clipped. The derivative of
    eigenvectors is NaN where eigenvalues are closer than √ε of the largest: rounding errors.

    >>> k = jnp.diag(jnp.array([1.0, 0.0]))
    >>> jax.grad(lambda k: jnp.sum(reopened(k, decomposed(k)).eigenvalues))(k)
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    return Modes(_eigenvalues(matrix, modes), _eigenvectors(matrix, modes), modes.rank)


# Two functions: a derivative of eigenvalues alone is to have nothing to do with eigenvectors.
@jax.custom_jvp
def _eigenvalues(matrix: Array, modes: Modes) -> Array:
    return modes.eigenvalues


@_eigenvalues.defjvp
def _eigenvalues_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    matrix, modes = primals
    u = _eigenvectors(matrix, modes)
    return _eigenvalues(matrix, modes), jnp.diagonal(_turned(tangents[0], u))


@jax.custom_jvp
def _eigenvectors(matrix: Array, modes: Modes) -> Array:
    return modes.eigenvectors


@_eigenvectors.defjvp
def _eigenvectors_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    values, u, _ = reopened(*primals)
    gap = values[None, :] - values[:, None]
    apart = jnp.abs(gap) > jnp.finfo(gap.dtype).eps ** 0.5 * values[0]
    quotient = jnp.where(apart, 1.0 / jnp.where(apart, gap, 1.0), jnp.nan)
    quotient = jnp.where(jnp.eye(len(gap), dtype=bool), 0.0, quotient)
    return u, dot(u, quotient * _turned(tangents[0], u))


def _turned(change: Array, u: Array) -> Array:
    return dot(u.T, dot(0.5 * (change + change.T), u))


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
    matrix = square("max_learning_rate", kernel)
    largest = jnp.linalg.eigvalsh(matrix)[-1] if len(matrix) else jnp.zeros((), matrix.dtype)
    return (2.0 * (1.0 + jnp.asarray(momentum, largest.dtype)) / largest).astype(dtype)

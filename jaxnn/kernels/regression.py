"""Regression with kernels: Gaussian processes, their evidence, and classes as targets."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int, Integer, Shaped

from jaxnn.errors import concrete, invalid
from jaxnn.kernels.dense_solves import factorized, solved
from jaxnn.kernels.matrices import as_columns, real_arrays, regularized, square
from jaxnn.linalg.vectors import dot
from jaxnn.types import Array, ArrayLike


class Posterior(NamedTuple):
    """A Gaussian process after data: means and covariances at the test inputs.

    mean        (M, ...) as the targets, (M,) or (M, C)
    covariance  (M, M) or the variances (M,), as what was given; shared by all targets
    rank        of K + noise·I; less than N means that the least-norm solution was taken
    residual    ‖(K + noise·I)α - y‖/‖y‖
    """

    mean: Float[Array, "M ..."]
    covariance: Float[Array, "M ..."] | None
    rank: Int[Array, ""]
    residual: Float[Array, ""]


def gp_posterior(
    kernel: Shaped[Array, "N N"],
    y: Shaped[Array, "N ..."],
    cross: Shaped[Array, "M N"],
    own: Shaped[Array, "M ..."] | None = None,
    *,
    noise: ArrayLike = 0.0,
    diag_reg: ArrayLike = 0.0,
) -> Posterior:
    """The Gaussian process with this kernel, given targets y with Gaussian noise.

        mean = K_* (K + noise·I)⁻¹ y,   covariance = K_** - K_* (K + noise·I)⁻¹ K_*ᵀ

    `cross` is K_*, the kernel between M test and N training inputs. `own` is K_**: (M, M), or its
    diagonal (M,), for variances alone, or None for means alone. `noise` is a variance, one number
    or one per target; `diag_reg` adds that multiple of the mean diagonal of K, as in
    neural-tangents. The covariance is that of the function, without the noise of new targets. A
    singular K gives the interpolant of least norm. With the tangent kernel the mean is that of
    infinitely wide networks trained to the end.

    Kernels come with rounding errors of ε·K_**, so that smaller variances cannot be told from 0:
    those that the difference makes negative are 0. A negative traced noise gives NaN.

    Errors: shapes that do not fit, a negative noise, complex numbers.

    Source: Williams & Rasmussen (2006), equations 2.23 and 2.24.

    >>> k = jnp.array([[1.0, 0.5], [0.5, 1.0]])
    >>> gp_posterior(k, jnp.array([1, -1]), k).mean.round(4)
    Array([ 1., -1.], dtype=float32)
    """
    (kernel, y, cross, own), dtype = real_arrays(
        "gp_posterior", kernel=kernel, y=y, cross=cross, own=own
    )
    matrix = square("gp_posterior", kernel)
    n = len(matrix)
    if kernel.ndim != 2 or y.shape[:1] != (n,) or cross.ndim != 2 or cross.shape[1] != n:
        raise invalid(
            "gp_posterior(y, cross)",
            got=f"shapes {y.shape} and {cross.shape}",
            expected=f"({n}, ...) and (M, {n}) for a kernel {kernel.shape}",
            remedy="cross is the kernel of test inputs (rows) with training inputs (columns).",
        )
    m = len(cross)
    if own is not None and own.shape not in ((m,), (m, m)):
        raise invalid(
            "gp_posterior(own)",
            got=f"shape {own.shape}",
            expected=f"({m},) or ({m}, {m})",
            remedy="It is the kernel of the test inputs, or its diagonal.",
        )
    targets = as_columns(y)
    sides = targets if own is None else jnp.concatenate([targets, cross.T], axis=1)
    found = solved(regularized("gp_posterior", matrix, noise, diag_reg), sides)
    weights, explained = found.x[:, : targets.shape[1]], found.x[:, targets.shape[1] :]
    mean = dot(cross, weights).reshape(m, *y.shape[1:]).astype(dtype)
    if own is None:
        covariance = None
    elif own.ndim == 1:
        covariance = jnp.maximum(own - jnp.einsum("mn,nm->m", cross, explained), 0.0).astype(dtype)
    else:
        covariance = positive_diagonal(own - dot(cross, explained)).astype(dtype)
    return Posterior(mean, covariance, found.rank, found.residual)


def positive_diagonal(covariance: Float[Array, "M M"]) -> Float[Array, "M M"]:
    """A covariance with the last digits of its entries repaired: symmetric, no variance below 0.

    >>> positive_diagonal(jnp.array([[-1e-7, 2.0], [4.0, 1.0]]))
    Array([[0., 3.],
           [3., 1.]], dtype=float32)
    """
    even = 0.5 * (covariance + covariance.T)
    below = jnp.minimum(jnp.diagonal(even), 0.0)
    return even - jnp.diag(below)


def log_marginal_likelihood(
    kernel: Shaped[Array, "N N"],
    y: Shaped[Array, "N ..."],
    *,
    noise: ArrayLike = 0.0,
    diag_reg: ArrayLike = 0.0,
) -> Float[Array, ""]:
    """ln p(y) of a Gaussian process, the sum over the columns of y: what hyperparameters maximize.

        -½ yᵀ(K + noise·I)⁻¹y - ½ ln det(K + noise·I) - ½ N ln 2π

    `noise` and `diag_reg` are those of `gp_posterior`. The value is -∞ for a singular
    K + noise·I, whose distribution has no density and no derivative, and NaN for a kernel with NaN.
    Otherwise it is differentiable, at equal eigenvalues too.

    Errors: shapes that do not fit, a negative noise, complex numbers.

    Source: Williams & Rasmussen (2006), equation 2.30.

    >>> float(log_marginal_likelihood(jnp.eye(2), jnp.zeros(2)))
    -1.8378770351409912
    """
    (kernel, y), dtype = real_arrays("log_marginal_likelihood", kernel=kernel, y=y)
    matrix = square("log_marginal_likelihood", kernel)
    n = len(matrix)
    if kernel.ndim != 2 or y.shape[:1] != (n,):
        raise invalid(
            "log_marginal_likelihood(y)",
            got=f"shape {y.shape}",
            expected=f"({n}, ...) for a kernel {kernel.shape}",
            remedy="y has a row for every row of the kernel.",
        )
    targets = as_columns(y)
    matrix = regularized("log_marginal_likelihood", matrix, noise, diag_reg)
    # Not by eigenmodes, which have no derivatives where eigenvalues are equal.
    factor, definite = factorized(matrix)
    fit = jnp.sum(lax.linalg.triangular_solve(factor, targets, left_side=True, lower=True) ** 2)
    log_det = 2.0 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    size = targets.shape[1] * (log_det + n * math.log(2.0 * math.pi))
    without = jnp.where(jnp.all(jnp.isfinite(matrix)), -jnp.inf, jnp.nan).astype(matrix.dtype)
    return jnp.where(definite, -0.5 * (fit + size), without).astype(dtype)


def class_targets(labels: Integer[Array, "N"], num_classes: int) -> Float[Array, "N C"]:
    """1 - 1/C for an example's class and -1/C for the others: regression targets of mean 0.

    The prediction is the class of the largest output. Labels outside 0..C-1 have no class.

    Errors: labels that are not integers, of another shape than (N,), num_classes < 1.

    Source: Lee et al. (2018), section 3.1.

    >>> class_targets(jnp.array([1]), 4)
    Array([[-0.25,  0.75, -0.25, -0.25]], dtype=float32)
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim != 1:
        raise invalid(
            "class_targets(labels)",
            got=f"dtype {labels.dtype}, shape {labels.shape}",
            expected="integers of shape (N,)",
            remedy="They are the numbers of classes, 0 to num_classes - 1.",
        )
    if concrete(num_classes) is None or num_classes < 1:
        raise invalid(
            "class_targets(num_classes)", got=num_classes, expected="an integer ≥ 1",
            remedy="It is the number of columns of the targets.",
        )  # fmt: skip
    # Not in the dtype of the labels: class 300 would be class 44 in uint8.
    classes = jnp.arange(num_classes)
    wide = labels if labels.dtype.itemsize > 4 else labels.astype(classes.dtype)
    return (wide[:, None] == classes.astype(wide.dtype)[None, :]).astype(float) - 1.0 / num_classes

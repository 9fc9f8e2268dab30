"""Regression with kernels: Gaussian processes, their evidence, and classes as targets."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from jaxnn.errors import invalid
from jaxnn.kernels.modes import factorized, solve
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
    kernel: Float[Array, "N N"],
    y: Float[Array, "N ..."],
    cross: Float[Array, "M N"],
    own: Float[Array, "M ..."] | None = None,
    *,
    noise: ArrayLike = 0.0,
) -> Posterior:
    """The Gaussian process with this kernel, given targets y with Gaussian noise.

        mean = K_* (K + noise·I)⁻¹ y,   covariance = K_** - K_* (K + noise·I)⁻¹ K_*ᵀ

    `cross` is K_*, the kernel between M test and N training inputs. `own` is K_**: (M, M), or its
    diagonal (M,), for variances alone, or None for means alone. `noise` is a variance; the
    covariance is that of the function, without the noise of new targets. A singular K gives the
    interpolant of least norm. With the tangent kernel the mean is that of infinitely wide networks
    trained to the end.

    Errors: shapes that do not fit.

    Source: Williams & Rasmussen (2006), equations 2.23 and 2.24.

    >>> k = jnp.array([[1.0, 0.5], [0.5, 1.0]])
    >>> gp_posterior(k, jnp.array([1.0, -1.0]), k).mean.round(4)
    Array([ 1., -1.], dtype=float32)
    """
    n, m = len(kernel), len(cross)
    if y.shape[0] != n or cross.shape[1] != n:
        raise invalid(
            "gp_posterior(y, cross)",
            got=f"shapes {y.shape} and {cross.shape}",
            expected=f"({n}, ...) and (M, {n}) for a kernel {kernel.shape}",
            remedy="cross is the kernel of test inputs (rows) with training inputs (columns).",
        )
    if own is not None and own.shape not in ((m,), (m, m)):
        raise invalid(
            "gp_posterior(own)",
            got=f"shape {own.shape}",
            expected=f"({m},) or ({m}, {m})",
            remedy="It is the kernel of the test inputs, or its diagonal.",
        )
    targets = y.reshape(n, -1)
    sides = targets if own is None else jnp.concatenate([targets, cross.T], axis=1)
    found = solve(kernel, sides, noise=noise)
    weights, explained = found.x[:, : targets.shape[1]], found.x[:, targets.shape[1] :]
    mean = (cross @ weights).reshape(m, *y.shape[1:])
    if own is None:
        covariance = None
    elif own.ndim == 1:
        covariance = own - jnp.einsum("mn,nm->m", cross, explained)
    else:
        covariance = own - cross @ explained
    return Posterior(mean, covariance, found.rank, found.residual)


def log_marginal_likelihood(
    kernel: Float[Array, "N N"], y: Float[Array, "N ..."], *, noise: ArrayLike = 0.0
) -> Float[Array, ""]:
    """ln p(y) of a Gaussian process, the sum over the columns of y: what hyperparameters maximize.

        -½ yᵀ(K + noise·I)⁻¹y - ½ ln det(K + noise·I) - ½ N ln 2π

    It is -∞ for a singular K + noise·I, whose distribution has no density. Differentiable.

    Source: Williams & Rasmussen (2006), equation 2.30.

    >>> float(log_marginal_likelihood(jnp.eye(2), jnp.zeros(2)))
    -1.8378770351409912
    """
    n = len(kernel)
    targets = y.reshape(n, -1)
    # Not by eigenmodes, which have no derivatives where eigenvalues are equal.
    _, factor, definite = factorized(kernel, noise)
    fit = jnp.sum(lax.linalg.triangular_solve(factor, targets, left_side=True, lower=True) ** 2)
    log_det = 2.0 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    size = targets.shape[1] * (log_det + n * math.log(2.0 * math.pi))
    return jnp.where(definite, -0.5 * (fit + size), -jnp.inf)


def class_targets(labels: Int[Array, "N"], num_classes: int) -> Float[Array, "N C"]:
    """1 - 1/C for an example's class and -1/C for the others: regression targets of mean 0.

    The prediction is the class of the largest output. Labels outside 0..C-1 have no class.

    Source: Lee et al. (2018), section 3.1.

    >>> class_targets(jnp.array([1]), 4)
    Array([[-0.25,  0.75, -0.25, -0.25]], dtype=float32)
    """
    classes = jnp.arange(num_classes, dtype=labels.dtype)
    return (labels[:, None] == classes[None, :]).astype(float) - 1.0 / num_classes
